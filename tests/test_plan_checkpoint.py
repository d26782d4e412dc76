"""`plan --checkpoint`: the analysed one only, and the loss change of the whole plan measured."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from ela_probe_cli import main

from ela_probe import ModelSpec, SkipPlan, load_checkpoint, prune, save_checkpoint
from ela_probe.data.images import ImageData
from ela_probe.data.opening import open_data
from ela_probe.data.text import TextData, open_text
from ela_probe.pipeline.refit import fitted_samples
from tests.support.commands import run
from tests.support.image_sets import write_images
from tests.support.networks import settled

SPEC = ModelSpec(name="mrla_b_resnet14", args={"num_classes": 3})
CPU = ["--device", "cpu"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with its data, another one of the same network, and an analysis of the first."""
    folder = tmp_path_factory.mktemp("planned")
    data = open_data(f"npz:{write_images(folder / 'set')}", val_fraction=0.2)
    model = settled(SPEC.name, **SPEC.args)
    save_checkpoint(folder / "best.pt", model, spec=SPEC, data=data.spec)
    save_checkpoint(folder / "bare.pt", model, spec=SPEC)
    with torch.no_grad():
        model.fc.bias += 1.0  # type: ignore[operator]
    save_checkpoint(folder / "other.pt", model, spec=SPEC, data=data.spec)
    words = ["analyze", str(folder / "best.pt"), "-o", str(folder / "an"), "--no-figures", *CPU]
    assert main(words) == 0
    return folder


def test_another_checkpoint_than_the_analysed_one_is_refused(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = ["plan", files / "an", "--skip", 0.5, "-o", tmp_path / "p.json", *CPU]
    line = run(capsys, *plan, "--checkpoint", files / "other.pt", code=2)
    assert "other.pt is not the checkpoint that" in line
    assert "give the analysed one, or run `ela-probe analyze` on this one" in line
    assert not (tmp_path / "p.json").exists()
    document = json.loads((files / "an" / "analysis.json").read_text())
    document["provenance"]["checkpoint_sha256"] = None  # of an analysis in Python
    unknown = tmp_path / "an"
    unknown.mkdir()
    (unknown / "analysis.json").write_text(json.dumps(document))
    (unknown / "arrays.npz").write_bytes((files / "an" / "arrays.npz").read_bytes())
    run(capsys, "plan", unknown, "--skip", 0.5, "--checkpoint", files / "other.pt", *CPU)


@pytest.mark.parametrize("action", ["affine", "skip"])
def test_the_loss_change_of_the_plan_is_measured_on_samples_that_no_fit_has_seen(
    action: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "p.json"
    words = ["plan", files / "an", "--skip", 0.5, "--action", action, "-o", path, *CPU]
    run(capsys, *words)
    assert SkipPlan.load(path).origin.measured_loss is None
    run(capsys, *words, "--checkpoint", files / "best.pt")
    plan = SkipPlan.load(path)
    found = plan.origin.measured_loss
    assert found is not None
    assert (found.samples, found.split) == (24, "train")  # 48 for training, half of them fitted to

    data = open_data(f"npz:{files / 'set'}", val_fraction=0.2)
    assert isinstance(data, ImageData)
    assert fitted_samples(data, "train") == 24
    fitted = set(data.dataset("train", limit=24).indices.tolist())
    others = data.dataset("train", after=24)
    assert not fitted & set(others.indices.tolist())
    images, labels = next(iter(data.loader("train", after=24)))
    model = load_checkpoint(files / "best.pt").eval()
    with torch.no_grad():
        before, after = (
            F.cross_entropy(network(images).double(), labels, reduction="none")
            for network in (model, prune(model, plan))
        )
    change = after - before
    # float32 networks, that ran in other batches
    assert found.mean == pytest.approx(float(change.mean()), rel=1e-3, abs=1e-5)
    assert found.se == pytest.approx(float(change.std() / 24**0.5), rel=1e-3)


def test_both_losses_are_shown_by_plan_and_by_prune(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = ["plan", files / "an", "--skip", "0.5", "-o", tmp_path / "p.json", "--limit", "10"]
    assert main([str(w) for w in [*plan, "--checkpoint", files / "best.pt", *CPU]]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "predicted: the loss changes by" in out
    assert "nats on 10 other train samples" in out
    pruned = ["prune", files / "best.pt", "--plan", tmp_path / "p.json", "--check", "9", *CPU]
    document = run(capsys, *pruned, "-o", tmp_path / "x.pt")
    assert document["measured_loss"]["samples"] == 10
    assert document["checked"]["samples"] == 9
    assert main([str(w) for w in [*pruned, "-o", tmp_path / "y.pt"]]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "held-out samples" in out
    assert "nats on 10 other train samples" in out


def test_the_data_of_a_bare_checkpoint_are_named(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", f"npz:{files / 'set'}"]
    run(capsys, "analyze", files / "bare.pt", *data, "-o", tmp_path / "an", "--no-figures", *CPU)
    plan = ["plan", tmp_path / "an", "--skip", 0.5, *CPU]
    line = run(capsys, *plan, "--checkpoint", files / "bare.pt", code=2)
    assert "name it with --data" in line
    found = run(capsys, *plan, "--checkpoint", files / "bare.pt", *data)
    assert found["origin"]["measured_loss"]["split"] == "train"
    line = run(capsys, *plan, *data, code=2)
    assert "got data or a model without --checkpoint" in line


def test_windows_of_a_text_after_others(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(bytes(range(256)) * 40)
    data = open_text(f"text:{tmp_path / 'text'}", context=16, limit=30)
    assert isinstance(data, TextData)
    first = set(data.dataset("train", limit=8).starts.tolist())
    others = set(data.dataset("train", after=8).starts.tolist())
    assert (len(first), len(others)) == (8, 22)
    assert first | others == set(data.dataset("train").starts.tolist())

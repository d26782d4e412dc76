"""Models of transformers that accelerate spreads over memory and disk: read by forward passes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("transformers", reason="transformers needs Python 3.11")
pytest.importorskip("accelerate", reason="accelerate comes with the extra hf")

from ela_probe import AttentionProbe, analyze, load_checkpoint
from ela_probe.checkpoint import read_checkpoint
from ela_probe.errors import CheckpointError, OptionError
from ela_probe.spreading import Spread, is_spread, parse_memory, with_weights
from tests.support.commands import run
from tests.support.transformers_models import inkling, save_model, token_ids

TEXT = "Now is the winter of our discontent, made glorious summer by this sun of York.\n" * 40
HALF = Spread("auto", {"cpu": "150KB"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place: Path = tmp_path_factory.mktemp("spread")
    (place / "text.txt").write_text(TEXT)
    save_model(place / "model", inkling(std=0.1))
    return place


def on_meta(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.is_meta}


def test_a_model_on_disk_has_the_same_analysis_and_keeps_no_weights(folder: Path) -> None:
    batches = [token_ids(seed=seed) for seed in (1, 2)]
    spread = read_checkpoint(folder / "model", spread=HALF)
    waiting = on_meta(spread.model)
    assert any(name.endswith("mlp_input.query") for name in waiting)
    assert waiting < {name for name, _ in spread.model.named_parameters()}
    assert spread.note is not None
    assert "parts on disk" in spread.note
    found = analyze(spread.model, batches, damage=False, progress=False)
    assert on_meta(spread.model) == waiting
    whole = analyze(load_checkpoint(folder / "model"), batches, damage=False, progress=False)
    for part, expected in zip(found.stages, whole.stages, strict=True):
        for name, values in expected.divergences.items():
            torch.testing.assert_close(
                torch.from_numpy(part.divergences[name]), torch.from_numpy(values),
                rtol=1e-9, atol=1e-12, equal_nan=True,
            )  # fmt: skip


def test_the_probe_of_a_spread_model_reads_a_loop_of_your_own(folder: Path) -> None:
    model: Any = read_checkpoint(folder / "model", spread=HALF).model
    assert is_spread(model)
    with AttentionProbe(model) as probe, torch.inference_mode():
        model(token_ids())
    assert probe.passes == 1


def test_weights_are_there_inside_the_block_alone(folder: Path) -> None:
    model = read_checkpoint(folder / "model", spread=HALF).model
    site = model.get_submodule("model.layers.3.mlp_input")
    expected = load_checkpoint(folder / "model").get_submodule("model.layers.3.mlp_input").query
    with with_weights(site):
        assert torch.equal(site.query, expected)  # type: ignore[arg-type]
    assert site.query.is_meta


def test_the_verbs_spread_a_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, options = f"hf:{folder / 'model'}", ("--device-map", "auto", "--max-memory", "cpu=150KB")
    assert (
        run(capsys, "discover", model, *options)["stages"]
        == (run(capsys, "discover", model)["stages"])
    )
    document = run(capsys, "analyze", model, *options, "--no-damage", "--data",
                   f"text:{folder / 'text.txt'}", "--context", "16", "--limit", "8",
                   "--no-figures", "-o", folder / "analysis")  # fmt: skip
    assert len(document["sites"]) == 8
    assert "damage_skip" not in document["sites"][0]


def test_what_cannot_be_spread_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, auto = f"hf:{folder / 'model'}", ("--device-map", "auto")
    text = ("--data", f"text:{folder / 'text.txt'}", "--context", "16")
    for words, expected in (
        (("analyze", model, *text, *auto), "--no-damage"),
        (("analyze", model, *text, *auto, "--no-damage", "--devices", "2"), "take one"),
        (("discover", model, "--max-memory", "cpu=1GB"), "add --device-map auto"),
        (("discover", model, *auto, "--max-memory", "cpu:1GB"), "0=20GiB,cpu=60GiB"),
        (("discover", folder / "text.txt", *auto), "is no hf:DIR"),
    ):
        assert expected in run(capsys, *words, code=2)
    assert not (folder / "model-analysis").exists()
    spread = read_checkpoint(folder / "model", spread=HALF).model
    with pytest.raises(OptionError, match="damage=False"):
        analyze(spread, [token_ids()], progress=False)


def test_a_pruned_directory_is_not_spread(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, analysis = f"hf:{folder / 'model'}", folder / "of-whole"
    run(capsys, "analyze", model, "--data", f"text:{folder / 'text.txt'}", "--context", "16",
        "--limit", "4", "--no-figures", "--no-damage", "-o", analysis)  # fmt: skip
    run(capsys, "plan", analysis, "--skip", "0.3", "--action", "skip")
    run(capsys, "prune", model, "--plan", analysis / "plan.json", "-o", folder / "pruned")
    with pytest.raises(CheckpointError, match="was pruned"):
        read_checkpoint(folder / "pruned", spread=HALF)


def test_broken_weights_on_disk_are_named(folder: Path, tmp_path: Path) -> None:
    broken = inkling(std=0.1)
    with torch.no_grad():
        broken.lm_head.weight[0, 0] = torch.nan
    save_model(tmp_path / "model", broken)
    with pytest.raises(CheckpointError, match=r"unembed.weight holds NaN"):
        read_checkpoint(tmp_path / "model", spread=HALF)


def test_a_model_that_fits_into_memory_is_an_ordinary_model(folder: Path) -> None:
    loaded = read_checkpoint(folder / "model", spread=Spread("auto", {"cpu": "1GiB"}))
    assert not is_spread(loaded.model)
    with torch.no_grad():
        expected = load_checkpoint(folder / "model")(token_ids()).logits
        assert torch.equal(loaded.model(token_ids()).logits, expected)
    assert analyze(loaded.model, [token_ids()], progress=False).provenance.samples == 3


def test_limits_of_memory() -> None:
    assert parse_memory("0=20GiB, cpu=60 GB") == {0: "20GiB", "cpu": "60 GB"}
    for text in ("", "cpu", "disk=1GB", "cpu=1", "0=GB", "cpu=-1GB"):
        with pytest.raises(OptionError, match="expected the number of a GPU"):
            parse_memory(text)

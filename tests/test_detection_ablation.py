"""Ablation of detectors: average precision of single actions, also after an interruption."""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ela_probe import Analysis, SkipPlan, discover, prune
from ela_probe.checkpoint import load_checkpoint, read_checkpoint, save_checkpoint
from ela_probe.data.opening import open_data
from ela_probe.errors import PlanError
from ela_probe.evaluation.evaluate import evaluate
from ela_probe.models.registry import ModelSpec
from ela_probe.pipeline.ablate import ablate_checkpoint
from ela_probe.pruning.ablation import Ablation, Change
from ela_probe.pruning.correlations import site_table
from ela_probe.report.page import write_report
from tests.support.commands import run
from tests.support.detection import SMALL, coco_folder, settled_detector
from tests.support.synthetic_analyses import make_analysis

NAME = "maskrcnn_mrla_b_resnet14_fpn"
SIZE = 3  # of a batch


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = coco_folder(tmp_path_factory.mktemp("data"), images=7)
    pair = f"{folder / 'images'},{folder / 'objects.json'}"
    model = settled_detector(NAME, box_score_thresh=0.0)
    spec = ModelSpec(name=NAME, args={"num_classes": 3, "box_score_thresh": 0.0, **SMALL})
    data = open_data(f"coco:{pair},{pair}", image_size=64)
    return save_checkpoint(folder / "best.pt", model, spec=spec, data=data.spec)


@pytest.fixture(scope="module")
def analysis(best: Path) -> Path:
    from ela_probe_cli import main

    folder = best.with_name("analysis")
    words = ["analyze", best, "-o", folder, "--no-figures", "--batch-size", SIZE]
    assert main([str(word) for word in words]) == 0
    return folder


@pytest.fixture(scope="module")
def whole(best: Path, analysis: Path) -> Path:
    """The folder of an ablation that was not interrupted."""
    folder = best.with_name("whole")
    ablate(best, analysis, folder)
    return folder


def ablate(best: Path, analysis: Path, folder: Path, *, resume: bool = False) -> Ablation:
    return ablate_checkpoint(
        read_checkpoint(best), Analysis.load(analysis), output=folder, batch_size=SIZE,
        resume=resume, progress=False,
    )  # fmt: skip


def test_the_precision_is_that_of_the_pruned_model(best: Path, whole: Path) -> None:
    """The same boxes in the same batches; the loss of a batch may be summed in another order."""
    found, model = Ablation.load(whole / "ablation.json"), load_checkpoint(best)
    loader = open_data(read_checkpoint(best).header.data.source, image_size=64).loader(
        "test", batch_size=SIZE
    )
    unchanged = evaluate(model, loader, progress=False)["precision"]
    assert found.ap == pytest.approx(unchanged.box.ap, rel=1e-9)
    assert found.ap is not None
    assert found.ap > 0
    stages = discover(model).stages
    later = [site.name for stage in stages for site in stage.sites[1:]]
    assert len(later) == 3
    changes = {(c.site, c.action): c for c in found.changes}
    for site in later:
        pruned = prune(model, SkipPlan.for_actions(stages, {site: "skip"}))
        expected = evaluate(pruned, loader, progress=False)["precision"].box.ap
        assert changes[site, "skip"].ap == pytest.approx(expected, rel=1e-6)
    assert len({change.ap for change in found.changes}) > 3
    assert [path.name for path in whole.iterdir()] == ["ablation.json"]


class Interrupted(Exception):
    """Stands for a kill."""


def interrupted(
    best: Path, analysis: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Ablation:
    """An ablation that ends after two of three batches; what it has written."""
    save = Ablation.save

    def cut(self: Ablation, path: Any) -> Path:
        written = save(self, path)
        if self.batches == 2:
            raise Interrupted
        return written

    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(Ablation, "save", cut)
        ablate(best, analysis, folder)
    return Ablation.load(folder / "ablation.json")


@pytest.mark.slow
def test_an_interrupted_ablation_has_the_precision_of_a_whole_one(
    best: Path, analysis: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = interrupted(best, analysis, tmp_path / "a", monkeypatch)
    assert (left.batches, len(left.detections), left.ap) == (2, 2, None)
    shutil.copytree(tmp_path / "a", tmp_path / "changed")
    assert ablate(best, analysis, tmp_path / "a", resume=True) == Ablation.load(
        whole / "ablation.json"
    )
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["ablation.json"]
    first = tmp_path / "changed" / "detections" / "batch-0.npz"
    first.write_bytes(first.with_name("batch-1.npz").read_bytes())
    with pytest.raises(PlanError, match="batch-0.npz is not the file .* leave out --resume"):
        ablate(best, analysis, tmp_path / "changed", resume=True)
    first.unlink()
    with pytest.raises(PlanError, match="batch-0.npz"):
        ablate(best, analysis, tmp_path / "changed", resume=True)


@pytest.mark.slow
def test_batches_of_an_older_version_leave_the_precision_unmeasured(
    best: Path, analysis: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = interrupted(best, analysis, tmp_path / "a", monkeypatch)
    left.model_copy(update={"detections": ()}).save(tmp_path / "a" / "ablation.json")
    found = ablate(best, analysis, tmp_path / "a", resume=True)
    assert found.complete
    assert found.ap is None
    assert [c.loss for c in found.changes] == [
        c.loss for c in Ablation.load(whole / "ablation.json").changes
    ]


@pytest.mark.slow
def test_the_command_tells_the_change(
    best: Path, analysis: Path, whole: Path, tmp_path: Path, capsys: Any
) -> None:
    from ela_probe_cli import main

    words = ["ablate", best, "--analysis", analysis, "-o", tmp_path / "out", "--batch-size", SIZE]
    result, known = run(capsys, *words), Ablation.load(whole / "ablation.json")
    assert known.ap is not None
    assert result["ap"] == known.ap
    assert result["accuracy"] is None
    table = pd.read_csv(tmp_path / "out" / "sites.csv")
    assert "accuracy_change" not in table
    for row, shown, change in zip(
        table.to_dict("records"), result["sites"], known.changes, strict=True
    ):
        assert change.ap is not None
        assert row["ap_change"] == pytest.approx(change.ap - known.ap, abs=1e-12)
        assert shown["ap_change"] == pytest.approx(row["ap_change"], abs=1e-12)
    capsys.readouterr()
    assert main([str(word) for word in [*words, "--resume"]]) == 0
    text = capsys.readouterr().out
    assert f"AP {known.ap:.2%}" in text
    page = write_report(Analysis.load(analysis), tmp_path / "page.html", ablation=known)
    assert '"ap_change":' in page.read_text(encoding="utf-8")


def test_a_classifier_has_its_accuracy_as_before() -> None:
    analysis = make_analysis((3,), samples=5)
    names = [site.name for part in analysis.stages for site in part.stage.sites]
    changes = tuple(Change(site=name, action="skip", accuracy=-2.0) for name in names)
    table = site_table(analysis, Ablation(samples=10, changes=changes))
    assert "ap_change" not in table
    assert list(table["accuracy_change"]) == [-0.2] * 3

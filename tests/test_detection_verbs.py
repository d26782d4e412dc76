"""The verbs on detectors: from training to comparison, on images that the test draws."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from ela_probe import Analysis, SkipPlan, discover, prune
from ela_probe.checkpoint import load_checkpoint, read_checkpoint
from ela_probe.data.opening import open_data
from ela_probe.evaluation.evaluate import evaluate
from ela_probe.evaluation.loss_change import loss_change
from ela_probe.pruning.ablation import PlanResult
from tests.support.commands import run
from tests.support.detection import coco_folder

MODEL = "fasterrcnn_mrla_b_resnet20_fpn"
ARGS = '{"channels": 16, "head_size": 32, "anchor_size": 8}'


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = coco_folder(tmp_path_factory.mktemp("coco"), images=12)
    pair = f"{folder / 'images'},{folder / 'objects.json'}"
    return f"coco:{pair},{pair}"


def train_words(source: str, out: Path, *more: object) -> list[object]:
    return [
        *("train", "--task", "detect", "--model", MODEL, "--data", source, "--image-size", 64),
        *("--model-args", ARGS, "--epochs", 2, "--batch-size", 4, "--lr", 0.01, "-o", out, *more),
    ]


@pytest.fixture(scope="module")
def trained(source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from ela_probe_cli import main

    folder = tmp_path_factory.mktemp("run")
    assert main([str(word) for word in train_words(source, folder)]) == 0
    return folder


def test_training_logs_the_precision_and_keeps_the_best(trained: Path) -> None:
    rows = list(csv.DictReader((trained / "metrics.csv").open()))
    assert [int(row["epoch"]) for row in rows] == [1, 2]
    assert {"train_loss", "val_loss", "val_ap", "val_box_ap50", "val_box_small"} <= rows[0].keys()
    read = read_checkpoint(trained / "best.pt")
    assert read.header.metrics["val_ap"] == max(float(row["val_ap"]) for row in rows)
    assert read.header.model.args["num_classes"] == 3
    assert read.header.model.args["min_size"] == 64
    data = open_data(read.header.data.source, image_size=64)
    last = load_checkpoint(trained / "last.pt")
    found = evaluate(last, data.loader("val", batch_size=4), progress=False)
    assert found["precision"].box.ap == pytest.approx(float(rows[1]["val_box_ap"]), abs=1e-6)
    assert found["loss"] == pytest.approx(float(rows[1]["val_loss"]), rel=1e-5)


def test_from_an_analysis_to_a_comparison(trained: Path, tmp_path: Path, capsys: Any) -> None:
    best, analysis = trained / "best.pt", tmp_path / "analysis"
    found = run(capsys, "analyze", best, "-o", analysis, "--no-figures", "--batch-size", 6)
    assert found["sites"][0]["site"] == "stages.0.0.retrieval"
    read = Analysis.load(analysis)
    assert read.has_damage
    assert read.provenance.precision is not None
    assert any("shorter side of 64 pixels" in note for note in read.provenance.notes)
    plan, small, tuned = tmp_path / "p.json", tmp_path / "small.pt", tmp_path / "tuned.pt"
    run(capsys, "plan", analysis, "--skip", 0.4, "-o", plan)
    run(capsys, "prune", best, "--plan", plan, "-o", small)
    assert len(SkipPlan.load(plan).skipped) == 4
    sites = [s for stage in discover(load_checkpoint(small)).stages for s in stage.sites]
    assert len(sites) == 5
    run(capsys, "finetune", small, "-o", tuned, "--epochs", 1, "--batch-size", 4)
    compared = run(capsys, "compare", best, small, tuned, "--repeats", 3, "--batch-size", 2)
    models = compared["models"]
    assert [m["kept"] for m in models] == [9, 5, 5]
    assert [m["accuracy"] for m in models] == [None] * 3
    assert all(0 <= m["precision"]["box"]["ap"] <= 1 for m in models)
    assert models[1]["parameters"] < models[0]["parameters"]
    assert models[1]["memory"]["training"] > 0
    assert "AP50" in str(_printed(capsys, "compare", best, "--repeats", "3", "--limit", "2"))


def _printed(capsys: Any, *words: object) -> str:
    from ela_probe_cli import main

    capsys.readouterr()
    assert main([str(word) for word in words]) == 0
    return str(capsys.readouterr().out)


def test_predicted_damage_is_near_the_measured_one(trained: Path, tmp_path: Path) -> None:
    """Proposals are drawn anew in the measurement, so that only most of it agrees."""
    from ela_probe.pipeline.analyze import analyze_checkpoint

    checkpoint = read_checkpoint(trained / "best.pt")
    analysis = analyze_checkpoint(checkpoint, batch_size=6, progress=False)
    sites = analysis.sites
    table = sites[sites["t"] > 0].set_index("site")["damage_skip"]
    name = str(table.abs().idxmax())
    plan = SkipPlan.for_actions(discover(checkpoint.model).stages, {name: "skip"})
    data = open_data(checkpoint.header.data.source, image_size=64)
    measured = loss_change(
        checkpoint.model,
        prune(checkpoint.model, plan),
        data.loader("train", batch_size=6),
        torch.device("cpu"),
        progress=False,
    )
    assert measured.samples == 12
    assert table[name] * measured.change > 0


def test_ablation_measures_what_pruning_does(trained: Path, tmp_path: Path, capsys: Any) -> None:
    """A site that is changed alone, and the pruned model, have the same loss."""
    best, analysis, out = trained / "best.pt", tmp_path / "analysis", tmp_path / "ablation"
    few = ("--limit", 2, "--batch-size", 2)
    run(capsys, "analyze", best, "-o", analysis, "--no-figures", *few)
    found = run(capsys, "ablate", best, "--analysis", analysis, "-o", out, *few)
    changes = {r["site"]: r["loss_change"] for r in found["sites"] if r["action"] == "skip"}
    assert len(changes) == 9
    model, name = load_checkpoint(best), "stages.1.2.retrieval"
    plan = SkipPlan.for_actions(discover(model).stages, {name: "skip"})
    data = open_data(read_checkpoint(best).header.data.source, image_size=64)
    losses = [
        evaluate(m, data.loader("test", batch_size=2, limit=2), progress=False)["loss"]
        for m in (model, prune(model, plan))
    ]
    assert found["loss"] == pytest.approx(losses[0], rel=1e-5)
    assert changes[name] == pytest.approx(losses[1] - losses[0], abs=1e-5)


def test_a_measured_plan_has_the_precision_in_place_of_the_accuracy() -> None:
    plan = PlanResult(
        name="a", planner="damage", action="skip", skipped=1, loss=1.0, accuracy=None, ap=0.3
    )
    assert plan.quality == 0.3
    assert plan.model_copy(update={"accuracy": 0.9}).quality == 0.9


def test_ela_prunes_while_a_detector_trains(source: str, tmp_path: Path, capsys: Any) -> None:
    words = train_words(source, tmp_path / "run", "--ela", "skip=0.4,warmup=1,ramp=1")
    words += ["--epochs", 3]
    found = run(capsys, *words)
    assert found["ela"]["skipped"] == 4
    last = read_checkpoint(tmp_path / "run" / "last.pt")
    assert last.header.skipped == 4


def test_a_detector_starts_from_a_pruned_classifier(
    source: str, tmp_path: Path, capsys: Any
) -> None:
    from ela_probe.checkpoint import save_checkpoint
    from ela_probe.models.registry import ModelSpec
    from tests.support.networks import settled

    whole = settled("mrla_b_resnet20")
    plan = SkipPlan.for_actions(discover(whole).stages, {"stages.2.1.retrieval": "skip"})
    path = save_checkpoint(
        tmp_path / "c.pt", prune(whole, plan), spec=ModelSpec(name="mrla_b_resnet20"), plans=[plan]
    )
    words = train_words(source, tmp_path / "run", "--backbone", path)
    run(capsys, *words[:-8], "--epochs", 1, "--batch-size", 6, *words[-4:])
    read = read_checkpoint(tmp_path / "run" / "best.pt")
    assert read.header.plans == (plan,)
    stem = read.model.get_parameter("backbone.body.conv1.weight")
    assert torch.equal(stem, whole.get_parameter("conv1.weight"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "classify"], "got --task classify, but .* is data to detect"),
        (["--model", "mrla_b_resnet20"], "is for images to classify, but .* images with objects"),
        (["--context", "8"], "got --context without --data text:FILE"),
        (["--model", "fasterrcnn_none20_fpn"], "no model is called"),
    ],
)
def test_what_does_not_fit_is_told(
    words: list[str], message: str, source: str, tmp_path: Path, capsys: Any
) -> None:
    import re

    line = run(capsys, *train_words(source, tmp_path / "run"), *words, code=2)
    assert re.search(message, line), line
    assert not (tmp_path / "run").exists()


def test_detectors_and_classifiers_refuse_each_others_data(
    trained: Path, tmp_path: Path, capsys: Any
) -> None:
    line = run(capsys, "analyze", trained / "best.pt", "--data", "digits", code=2)
    assert "the model is a detector" in line
    words = ("train", "--model", MODEL, "--data", "digits", "-o", tmp_path / "x")
    assert "is for images with objects" in run(capsys, *words, code=2)
    line = run(capsys, "train", "--model", "resnet20", "--data", "digits", "--skip-invalid", code=2)
    assert "--skip-invalid without --data coco:" in line

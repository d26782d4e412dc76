"""Average precision: equal to pycocotools and to faster-coco-eval on the same detections file."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from faster_coco_eval import COCO as FasterCOCO
from faster_coco_eval import COCOeval_faster
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from ela_probe import Analysis
from ela_probe.checkpoint import save_checkpoint
from ela_probe.data.opening import open_data
from ela_probe.evaluation.average_precision import FIGURES, AveragePrecision
from ela_probe.evaluation.detections import DetectionPrecision, as_coco_results
from ela_probe.evaluation.evaluate import evaluate
from ela_probe.models.registry import ModelSpec
from tests.support.detection import SMALL, coco_folder, settled_detector

SIZE = 160
CATEGORIES = (3, 7)


def rectangles(boxes: Tensor) -> Tensor:
    masks = torch.zeros(len(boxes), SIZE, SIZE, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    return masks


def draw(images: int) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """Objects of all sizes with crowds among them; detections near most, and some anywhere."""
    generator = torch.Generator().manual_seed(1)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    targets, detections = [], []
    for number in range(images):
        count = 0 if number == 0 else 6
        sides = 2 ** uniform(2.5, 7.2, count, 2)
        corners = uniform(0, 1, count, 2) * (SIZE - sides)
        boxes = torch.cat([corners, corners + sides], dim=1).round()
        labels = torch.randint(1, 3, (count,), generator=generator)
        targets.append(
            {
                "boxes": boxes, "labels": labels, "masks": rectangles(boxes),
                "area": (boxes[:, 2:] - boxes[:, :2]).prod(dim=1),
                "iscrowd": (torch.arange(count) == 4).to(torch.uint8),
            }
        )  # fmt: skip
        near = (boxes + uniform(-6, 6, count, 4)).clamp(0, SIZE)
        far = uniform(0, SIZE / 2, 4, 4) + torch.tensor([0.0, 0.0, SIZE / 2, SIZE / 2])
        found = torch.cat([near, far])
        found = torch.cat([found[:, :2], torch.maximum(found[:, 2:], found[:, :2] + 2)], dim=1)
        kept = found.round().clamp(0, SIZE)
        detections.append(
            {
                "boxes": kept,
                "labels": torch.cat([labels, torch.randint(1, 3, (4,), generator=generator)]),
                "scores": uniform(0, 1, len(kept)),
                "masks": rectangles(kept)[:, None].float() * 0.9,
            }
        )
    return detections, targets


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Path]:
    """Our figures, and the same detections and objects as COCO's files."""
    detections, targets = draw(12)
    folder = tmp_path_factory.mktemp("coco")
    precision = DetectionPrecision(masks=True)
    precision.update(detections, targets)
    results = as_coco_results(detections, range(12), CATEGORIES)
    (folder / "results.json").write_text(json.dumps(results))
    as_if = as_coco_results(
        [
            {**t, "scores": torch.ones(len(t["labels"])), "masks": t["masks"][:, None].float()}
            for t in targets
        ],
        range(12),
        CATEGORIES,
    )
    flat = [
        (float(a), int(c)) for t in targets for a, c in zip(t["area"], t["iscrowd"], strict=True)
    ]
    objects = [
        {**row, "id": number, "area": area, "iscrowd": crowd}
        for number, (row, (area, crowd)) in enumerate(zip(as_if, flat, strict=True), start=1)
    ]
    document = {
        "images": [{"id": n, "width": SIZE, "height": SIZE} for n in range(12)],
        "annotations": objects,
        "categories": [{"id": n, "name": str(n)} for n in CATEGORIES],
    }
    (folder / "objects.json").write_text(json.dumps(document))
    return precision.compute(), folder / "objects.json", folder / "results.json"


def as_list(found: AveragePrecision) -> list[float | None]:
    return [getattr(found, name) for name in FIGURES]


@pytest.mark.parametrize(("kind", "figure"), [("bbox", "box"), ("segm", "mask")])
@pytest.mark.parametrize("judge", ["pycocotools", "faster-coco-eval"])
def test_it_is_that_of_the_reference(judge: str, kind: str, figure: str, files: Any) -> None:
    """torchmetrics returns float32."""
    found, objects, results = files
    with contextlib.redirect_stdout(io.StringIO()):
        if judge == "pycocotools":
            truth: Any = COCO(str(objects))
            run: Any = COCOeval(truth, truth.loadRes(str(results)), kind)
        else:
            truth = FasterCOCO(str(objects))
            run = COCOeval_faster(truth, truth.loadRes(str(results)), kind)
        run.evaluate()
        run.accumulate()
        run.summarize()
    assert as_list(getattr(found, figure)) == pytest.approx(list(run.stats[:6]), abs=1e-6)
    assert 0.05 < found.box.ap < 0.95


def test_it_depends_on_no_order_of_the_images() -> None:
    detections, targets = draw(6)
    found = []
    for order in (range(6), range(5, -1, -1)):
        precision = DetectionPrecision(masks=False)
        for number in order:
            precision.update([detections[number]], [targets[number]])
        found.append(precision.compute())
    assert as_list(found[0].box) == pytest.approx(as_list(found[1].box), abs=1e-6)
    assert found[0].mask is None


def test_perfect_detections_have_all_of_it_and_none_have_nothing() -> None:
    _, targets = draw(12)
    for target in targets:
        target["iscrowd"] = torch.zeros_like(target["iscrowd"])
    perfect = [{**t, "scores": torch.ones(len(t["labels"]))} for t in targets]
    precision = DetectionPrecision(masks=False)
    precision.update(perfect, targets)
    assert all(value == pytest.approx(1.0) for value in as_list(precision.compute().box))
    precision.reset()
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}
    precision.update([{**nothing, "scores": torch.zeros(0)}] * 12, targets)
    assert precision.compute().box.ap == 0.0


def test_without_any_object_there_is_no_figure() -> None:
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}
    precision = DetectionPrecision(masks=False)
    precision.update([{**nothing, "scores": torch.zeros(0)}], [nothing])
    assert as_list(precision.compute().box) == [None] * 6


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = coco_folder(tmp_path_factory.mktemp("data"), images=9)
    source = f"coco:{folder / 'images'},{folder / 'objects.json'}"
    name = "maskrcnn_mrla_b_resnet14_fpn"
    model = settled_detector(name, box_score_thresh=0.0)
    spec = ModelSpec(name=name, args={"num_classes": 3, "box_score_thresh": 0.0, **SMALL})
    data = open_data(source, image_size=64)
    return save_checkpoint(folder / "model.pt", model, spec=spec, data=data.spec), source


def test_evaluation_has_the_mean_loss_and_the_precision(detector: tuple[Path, str]) -> None:
    from ela_probe.checkpoint import load_checkpoint

    model, data = load_checkpoint(detector[0]), open_data(detector[1], image_size=64)
    found = evaluate(model, data.loader("train", batch_size=3), progress=False)
    losses, precision = [], DetectionPrecision(masks=True)
    with torch.no_grad():
        for images, targets in data.loader("train", batch_size=3):
            both = model(**images, targets=targets)
            losses.append(both.losses.double())
            precision.update(both.detections, targets)
    assert found["loss"] == pytest.approx(float(torch.cat(losses).mean()), rel=1e-6)
    assert found["precision"] == precision.compute()
    assert found["samples"] == len(torch.cat(losses)) == 8


def test_two_processes_find_the_precision_of_one(detector: tuple[Path, str], tmp_path) -> None:
    """Exactly: every process evaluates whole batches, and the figures are computed from all."""
    command = Path(sys.executable).with_name("ela-probe")
    found = []
    for count in ("1", "2"):
        out = tmp_path / count
        words = ["analyze", detector[0], "-o", out, "--batch-size", "2", "--no-figures"]
        done = subprocess.run(
            [sys.executable, command, *words, "--devices", count, "--device", "cpu"],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
            timeout=3600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.append(Analysis.load(out))
    one, two = (analysis.provenance for analysis in found)
    assert one.precision is not None
    assert one.precision == two.precision
    assert one.loss == pytest.approx(two.loss, rel=1e-12)
    assert one.samples == two.samples == 8
    damage = [analysis.sites["damage_skip"].to_numpy() for analysis in found]
    assert damage[0] == pytest.approx(damage[1], rel=1e-9)
    assert (abs(damage[0]) > 0).any()


@pytest.mark.slow
def test_two_that_train_validate_as_one_does(tmp_path: Path) -> None:
    """Every image once, padded as in the whole batch; up to the rounding of float32."""
    from ela_probe.checkpoint import read_checkpoint

    folder = coco_folder(tmp_path / "data", images=6)
    pair = f"{folder / 'images'},{folder / 'objects.json'}"
    name, more = "fasterrcnn_mrla_b_resnet14_fpn", {"box_score_thresh": 0.0, "max_size": 128}
    spec = ModelSpec(name=name, args={"num_classes": 3, **SMALL, **more})
    data = open_data(f"coco:{pair},{pair}", image_size=64)
    model, start = settled_detector(name, **more), tmp_path / "start.pt"
    save_checkpoint(start, model, spec=spec, data=data.spec)
    command, tuned = Path(sys.executable).with_name("ela-probe"), tmp_path / "tuned.pt"
    words = ["finetune", str(start), "-o", str(tuned), "--epochs", "1"]
    words += ["--batch-size", "3", "--lr", "0.0001"]
    done = subprocess.run(
        [sys.executable, command, *words, "--devices", "2", "--device", "cpu"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=3600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    read = read_checkpoint(tuned)
    found = evaluate(read.model, data.loader("val", batch_size=3), progress=False)
    assert read.header.metrics["val_loss"] == pytest.approx(found["loss"], rel=1e-5)
    assert read.header.metrics["val_ap"] == pytest.approx(found["precision"].box.ap, abs=1e-5)
    assert found["precision"].box.ap > 0

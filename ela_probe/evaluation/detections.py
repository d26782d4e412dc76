"""DetectionPrecision: average precision over all images of all processes, as COCO measures it."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from ela_probe.evaluation.average_precision import FIGURES, AveragePrecision, Precisions
from ela_probe.system.extras import faster_coco_eval
from ela_probe.system.processes import all_gather

MASK_THRESHOLD = 0.5  # of the probability that a pixel belongs to an object, as is usual
OF_TARGETS = ("boxes", "labels", "masks", "area", "iscrowd")
OF_DETECTIONS = ("boxes", "labels", "scores", "masks")


class DetectionPrecision:
    """Collects detections, and measures them with faster-coco-eval through torchmetrics.

    Masks are kept run-length encoded. The figures depend neither on the order of the images nor on
    the number of processes, but for detections of exactly equal scores.

    Args:
        masks: whether masks are measured too.

    Raises:
        OptionError: the package faster-coco-eval is missing.
    """

    def __init__(self, *, masks: bool) -> None:
        faster_coco_eval()
        self.masks = masks
        self._metric = _metric(masks)

    def update(
        self, detections: Iterable[Mapping[str, Tensor]], targets: Iterable[Mapping[str, Tensor]]
    ) -> None:
        """Add the detections in some images, and the objects that are there."""
        self._metric.update(
            [self._taken(found, OF_DETECTIONS) for found in detections],
            [self._taken(target, OF_TARGETS) for target in targets],
        )

    def compute(self) -> Precisions:
        """The figures of all images that any process has added; all processes call it."""
        whole = _metric(self.masks)
        whole.update([], [])  # otherwise torchmetrics warns that there was no update
        for states in all_gather({k: list(v) for k, v in self._metric.metric_state.items()}):
            for name, values in states.items():
                getattr(whole, name).extend(values)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Encountered more than 100 detections")
            found = whole.compute()
        kinds = ("bbox_", "segm_") if self.masks else ("",)
        figures = [
            AveragePrecision(**{ours: _known(found[f"{kind}{n}"]) for ours, n in FIGURES.items()})
            for kind in kinds
        ]
        return Precisions(box=figures[0], mask=figures[1] if self.masks else None)

    def reset(self) -> None:
        """Forget everything."""
        self._metric.reset()

    def _taken(self, image: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Any]:
        taken = {n: image[n].detach().cpu() for n in names if n in image and n != "masks"}
        if self.masks:
            masks = image["masks"].detach()
            if masks.is_floating_point():
                masks = masks.squeeze(1) > MASK_THRESHOLD
            taken["masks"] = masks.bool().cpu()
        return taken


def _metric(masks: bool) -> MeanAveragePrecision:
    return MeanAveragePrecision(
        iou_type=("bbox", "segm") if masks else "bbox",
        backend="faster_coco_eval",
        sync_on_compute=False,
    )


def _known(value: Tensor) -> float | None:
    """A figure; None where there is nothing to measure it on, which is told by −1."""
    number = float(value)
    return None if number < 0 else number


def as_coco_results(
    detections: Iterable[Mapping[str, Tensor]],
    image_ids: Iterable[int],
    category_ids: Sequence[int],
) -> list[dict[str, Any]]:
    """Detections in the format of COCO's results, for a JSON file.

    Args:
        detections: by image, as our detectors return them. image_ids: of the same images.
        category_ids: of the labels 1, 2, ...
    """
    mask_tools = faster_coco_eval().mask
    rows = []
    for found, image in zip(detections, image_ids, strict=True):
        boxes = found["boxes"].detach().cpu().double()
        boxes[:, 2:] -= boxes[:, :2]
        scores, labels = found["scores"].tolist(), found["labels"].tolist()
        for place, (box, score, label) in enumerate(
            zip(boxes.tolist(), scores, labels, strict=True)
        ):
            row: dict[str, Any] = {
                "image_id": image, "category_id": category_ids[label - 1],
                "bbox": box, "score": score,
            }  # fmt: skip
            if "masks" in found:
                mask = (found["masks"][place, 0] > MASK_THRESHOLD).to(torch.uint8).cpu().numpy()
                encoded = mask_tools.encode(mask.copy(order="F"))
                counts = encoded["counts"]
                row["segmentation"] = {
                    "size": [int(side) for side in encoded["size"]],
                    "counts": counts.decode() if isinstance(counts, bytes) else counts,
                }
            rows.append(row)
    return rows

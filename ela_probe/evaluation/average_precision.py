"""AveragePrecision: the figures of COCO's evaluation for boxes or masks. It needs no torch."""

from ela_probe.system.validation import Finite, Strict

# Our names of the figures, and those that torchmetrics gives them.
FIGURES = {
    "ap": "map", "ap50": "map_50", "ap75": "map_75",
    "small": "map_small", "medium": "map_medium", "large": "map_large",
}  # fmt: skip


class AveragePrecision(Strict):
    """Mean average precision over categories, as fractions of 1 (https://cocodataset.org).

    ap: over the overlaps 0.5, 0.55, ..., 0.95; ap50, ap75: at one overlap; small, medium, large: as
    ap, of objects below 32 x 32 pixels, up to 96 x 96, and above. None where there are no such
    objects.
    """

    ap: Finite | None
    ap50: Finite | None
    ap75: Finite | None
    small: Finite | None = None
    medium: Finite | None = None
    large: Finite | None = None


class Precisions(Strict):
    """The figures of a detector: for its boxes and, with Mask R-CNN, for its masks."""

    box: AveragePrecision
    mask: AveragePrecision | None = None

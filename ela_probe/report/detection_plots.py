"""Figures of detectors: what they find in images, side by side, and their precision by size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from ela_probe.errors import OptionError
from ela_probe.evaluation.comparison import Comparison
from ela_probe.report.figure_style import (
    FIT,
    INK,
    MASS,
    SHAPE,
    THEME,
    drawing,
    legend_below,
    title,
)
from ela_probe.report.site_labels import short

HUES = (SHAPE, MASS, "#029e73", FIT, "#cc78bc", "#56b4e9")  # by category, from the first again
SIZES = {"small": "below 32 x 32", "medium": "32 x 32 to 96 x 96", "large": "above 96 x 96"}
LEAST_SCORE = 0.5


def detections_side_by_side(
    images: Sequence[Any],
    columns: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    classes: Sequence[str],
    least_score: float = LEAST_SCORE,
) -> tuple[Figure, NDArray[Any]]:
    """The objects in some images as several models find them: a row for each image.

    Args:
        images: [3, height, width] each, in 0 to 1.
        columns: by title, for every image what `boxes` [objects, 4] and `labels` [objects] from 1
            there are, and, where a model has found them, `scores` and `masks` [objects, 1, height,
            width]. Targets have no scores.
        classes: the names of the labels 1, 2, ...
        least_score: objects below it are left out.

    Returns: the figure, and its axes [images, columns].

    Raises:
        OptionError: there are no images, or not as many detections as images.
    """
    if not len(images) or any(len(found) != len(images) for found in columns.values()):
        counts = {name: len(found) for name, found in columns.items()}
        raise OptionError(
            f"got {len(images)} images and detections {counts}; expected equal counts"
        )
    with matplotlib.rc_context(cast(Any, THEME)):
        size = (3.2 * len(columns), 2.6 * len(images))
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(len(images), len(columns), squeeze=False)
        for row, image in enumerate(images):
            for axes, (name, found) in zip(grid[row], columns.items(), strict=True):
                _draw(axes, image, found[row], classes, least_score)
                if row == 0:
                    axes.set_title(short(name, 40), loc="left", weight="bold")
        used = [
            Rectangle((0, 0), 1, 1, color=hue_of(label)) for label in range(1, len(classes) + 1)
        ]
        figure.legend(used, list(classes), loc="outside lower center", ncols=min(6, len(classes)))
    return figure, grid


def _draw(
    axes: Axes, image: Any, found: Mapping[str, Any], classes: Sequence[str], least_score: float
) -> None:
    axes.imshow(np.asarray(image).transpose(1, 2, 0).clip(0, 1))
    axes.set_axis_off()
    scores = found.get("scores")
    for place, (box, label) in enumerate(
        zip(np.asarray(found["boxes"]), np.asarray(found["labels"]), strict=True)
    ):
        if scores is not None and float(scores[place]) < least_score:
            continue
        hue = hue_of(int(label))
        x1, y1, x2, y2 = (float(value) for value in box)
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color=hue, linewidth=1.2))
        if scores is not None and "masks" in found:
            mask = np.asarray(found["masks"])[place, 0] > 0.5
            shade = np.zeros((*mask.shape, 4))
            shade[mask] = (*matplotlib.colors.to_rgb(hue), 0.4)
            axes.imshow(shade)


def hue_of(label: int) -> str:
    """The colour of a category."""
    return HUES[(label - 1) % len(HUES)]


def precision_by_size(
    comparison: Comparison, *, masks: bool = False, ax: Axes | None = None
) -> tuple[Figure, Axes]:
    """The average precision of every model of a comparison, for all objects and by their size.

    Args:
        masks: of masks, else of boxes.

    Raises:
        OptionError: no model of the comparison is a detector, or none finds masks.
    """
    found = {
        row.name: row.precision and (row.precision.mask if masks else row.precision.box)
        for row in comparison.models
    }
    known = {name: figures for name, figures in found.items() if figures is not None}
    if not known:
        what = "masks" if masks else "detectors"
        raise OptionError(f"the comparison has no {what}; expected one of detectors")
    kinds = {"ap": "all", **SIZES}
    with drawing(ax, (6.0, 3.8)) as (figure, axes):
        title(axes, "Average precision by size", "of masks" if masks else "of boxes, shares of 1")
        width = 0.8 / len(known)
        for number, (name, figures) in enumerate(known.items()):
            values = [getattr(figures, kind) for kind in kinds]
            places = np.arange(len(kinds)) + (number - (len(known) - 1) / 2) * width
            heights = [np.nan if value is None else value for value in values]
            bars = axes.bar(places, heights, width * 0.9, color=HUES[number % len(HUES)])
            bars.set_label(short(name, 40))
            axes.bar_label(
                bars, ["–" if value is None else f"{value:.2f}" for value in values],
                fontsize="small", color=INK,
            )  # fmt: skip
        labels = [kind if kind != "ap" else "all" for kind in kinds]
        axes.set_xticks(range(len(kinds)), labels)
        axes.set_ylim(0, 1.05)
        axes.set_xlabel(
            f"size of the object (small {SIZES['small']}, large {SIZES['large']} pixels)"
        )
        legend_below(axes)
    return figure, axes

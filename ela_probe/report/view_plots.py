"""Figures that look closer at neighbours: by head, by class, and the most unusual samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ela_probe.analysis.result import StageAnalysis
from ela_probe.errors import printable
from ela_probe.report.figure_style import (
    INK,
    MUTED,
    SHAPE,
    cell_ticks,
    drawing,
    empty,
    fit_ticks,
    heatmap,
    sample_note,
    title,
)
from ela_probe.report.nats_scale import NatsScale
from ela_probe.report.sample_pictures import picture_of
from ela_probe.report.site_labels import shared_name, short, short_labels
from ela_probe.system.arrays import Floats
from ela_probe.system.numbers import readable

# The most classes that a heatmap shows: those that differ most from the mean over all samples.
MOST_ROWS = 40


class Samples(Protocol):
    """A data set by position: its items are images, texts, tokens, or pairs of these and labels."""

    def __getitem__(self, position: int, /) -> Any:
        """The sample at a position."""


def head_divergence(part: StageAnalysis, *, ax: Axes | None = None) -> tuple[Figure, Axes]:
    """The mean kl of every site from the one before it, head by head: [H, T − 1] cells, in nats."""
    with drawing(ax, (6.0, 3.6)) as (figure, axes):
        title(axes, "divergence by head", sample_note(part), of=part.stage.name)
        if part.views is None or not len(part.views.head_kl):
            empty(axes, "one head only, or none that could be told apart")
            return figure, axes
        heads = [str(h) for h in range(len(part.views.head_kl))]
        _heatmap(axes, part, part.views.head_kl[:, 1:], heads)
        axes.set_ylabel("head")
    return figure, axes


def class_divergence(
    part: StageAnalysis, *, names: Sequence[str] = (), ax: Axes | None = None
) -> tuple[Figure, Axes]:
    """The mean kl of every site from the one before it, class by class, in nats.

    Of more than MOST_ROWS classes those are shown whose mean over the sites is farthest from that
    of all samples.

    Args:
        names: of the classes, in their order; their numbers when empty.
    """
    with drawing(ax, (6.0, 5.0)) as (figure, axes):
        title(axes, "divergence by class", sample_note(part), of=part.stage.name)
        chosen = shown_classes(part)
        if part.views is None or not len(chosen):
            empty(axes, "no class was recorded: it takes one label a sample, and two retrievals")
            return figure, axes
        labels = [short(class_name(c, names), 16) for c in chosen]
        _heatmap(axes, part, part.views.class_kl[chosen][:, 1:], labels)
        of = f" ({len(chosen)} of {int((part.views.class_counts > 0).sum())})"
        axes.set_ylabel("class" + (of if len(chosen) == MOST_ROWS else ""))
    return figure, axes


def unusual_samples(
    part: StageAnalysis,
    *,
    samples: Samples | None = None,
    names: Sequence[str] = (),
    ax: Axes | None = None,
) -> tuple[Figure, Axes]:
    """The samples whose mean kl of neighbours is farthest from that of all, farthest first.

    A bar for each, from the stage's mean to the sample's, beside what the sample shows.

    Args:
        samples: the data set that was analysed, in its order, such as `data.dataset("train")`;
            without it samples are named by their positions.
        names: of the classes; their numbers when empty.
    """
    found = () if part.views is None else part.views.unusual_positions
    with drawing(ax, (6.0, 1.6 + 0.6 * max(1, len(found)))) as (figure, axes):
        title(axes, "the most unusual samples", sample_note(part), of=part.stage.name)
        if part.views is None or not len(found):
            empty(axes, "no sample was recorded by its position")
            return figure, axes
        mean, kl = stage_mean(part), part.views.unusual_kl
        rows = np.arange(len(found))
        axes.barh(rows, kl - mean, left=mean, height=0.5, color=SHAPE)
        axes.axvline(mean, color=INK, linewidth=1)
        labels = [f"sample {position}" for position in found]
        for row, position in enumerate(found):
            if samples is None:
                continue
            image, words = picture_of(samples[int(position)], names)
            labels[row] = short(f"{labels[row]}: {words}" if words else labels[row], 34)
            if image is not None:
                _put(axes, image, row)
        axes.set_ylim(len(found) - 0.5, -0.5)
        reach = max(float(np.abs(kl - mean).max()), 0.01 * mean, 1e-9)
        axes.set_xlim(max(0.0, mean - 1.2 * reach), mean + 1.2 * reach)
        fit_ticks(axes, "y", rows.tolist(), labels)
        if samples is not None and any(isinstance(a, AnnotationBbox) for a in axes.artists):
            axes.tick_params("y", pad=42)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.ticklabel_format(axis="x", useOffset=False)
        axes.set_xlabel("mean kl of neighbours [nats]; line: all samples")
        for row, value in enumerate(kl):
            axes.annotate(
                readable(float(value), digits=3), (float(value), row),
                xytext=(4 if value >= mean else -4, 0), textcoords="offset points",
                ha="left" if value >= mean else "right", va="center", color=MUTED,
                fontsize="small",
            )  # fmt: skip
    return figure, axes


def stage_mean(part: StageAnalysis) -> float:
    """The mean kl of neighbours over the sites and samples of a stage, in nats."""
    return float(part.adjacent("kl")[1:].mean())


def shown_classes(part: StageAnalysis, most: int = MOST_ROWS) -> NDArray[np.intp]:
    """The classes that occur; of more than `most` those that differ most, in their order."""
    if part.views is None:
        return np.zeros(0, dtype=np.intp)
    present = np.flatnonzero(part.views.class_counts)
    if not len(present):
        return present
    means = part.views.class_kl[present][:, 1:].mean(axis=1)
    order = np.argsort(-np.abs(means - stage_mean(part)), kind="stable")
    return np.sort(present[order][:most])


def class_name(number: int, names: Sequence[str]) -> str:
    """The name of a class; its number where it has none."""
    return printable(names[number]) if 0 <= number < len(names) else str(number)


def _heatmap(axes: Axes, part: StageAnalysis, values: Floats, rows: Sequence[str]) -> None:
    scale = NatsScale.of(values)
    bar = heatmap(
        axes, values, mask=np.zeros(values.shape, dtype=bool), norm=scale.norm(), cmap="rocket_r",
        label="kl [nats]", square=False,
    )  # fmt: skip
    scale.label(bar)
    names = [site.name for site in part.stage.sites]
    cell_ticks(axes, short_labels(names)[1:], rows)
    axes.set_xlabel(f"site  ({shared_name(names)})")


def _put(axes: Axes, image: NDArray[np.uint8], row: int) -> None:
    """A picture left of a row, 32 points high."""
    zoom = 32 / max(image.shape[:2])
    box = AnnotationBbox(
        OffsetImage(image, zoom=zoom, cmap="gray"), (0, row), xybox=(-22, 0),
        xycoords=axes.get_yaxis_transform(), boxcoords="offset points", frameon=False,
    )  # fmt: skip
    axes.add_artist(box)

"""The axis of figures along depth: all sites of all stages, from the first to the last."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from matplotlib.axes import Axes

from ela_probe.analysis.result import Analysis, StageAnalysis
from ela_probe.report.figure_style import MUTED, POINTS, axes_inches, fit_ticks
from ela_probe.report.site_labels import shared_name, short, short_labels


def depth_size(sites: int, *, height: float = 4.0) -> tuple[float, float]:
    """The size of a figure along depth, in inches."""
    return min(12.0, max(6.0, 0.17 * sites)), height


def depth_axis(axes: Axes, analysis: Analysis, *, first: bool = True) -> None:
    """Label the sites along x, and mark each stage by a line and its name.

    Args:
        first: whether the first sites of stages get a grey band, because nothing is drawn there.
    """
    parts = analysis.stages
    starts = [0, *accumulate(len(part.stage.sites) for part in parts)]
    count = starts.pop()
    axes.set_xlim(-0.7, count - 0.3)
    for index, (start, name) in enumerate(
        zip(starts, _stage_names(axes, parts, count), strict=True)
    ):
        if first:
            text = None if index else "first of its stage"
            axes.axvspan(start - 0.4, start + 0.4, color="#ebebeb", lw=0, label=text, zorder=0)
        if index:
            axes.axvline(start - 0.5, color="#bbbbbb", linewidth=1, zorder=0)
        axes.text(
            start - 0.4, 1.0, name, transform=axes.get_xaxis_transform(), va="top",
            fontsize="small", color=MUTED,
        )  # fmt: skip
    labels = [
        label for part in parts for label in short_labels([site.name for site in part.stage.sites])
    ]
    fit_ticks(axes, "x", range(count), labels)
    axes.set_xlabel(f"site, along depth  ({shared_name([part.stage.name for part in parts])})")


def _stage_names(axes: Axes, parts: Sequence[StageAnalysis], count: int) -> list[str]:
    """The names of the stages, cut to what differs or left out where they would overlap."""
    letters = 72 * axes_inches(axes)[0] / (0.65 * POINTS) / count  # that fit above one site
    names = [part.stage.name for part in parts]
    for texts in ([short(name, 20) for name in names], short_labels(names)):
        fits = [
            len(text) + 1 <= letters * len(part.stage.sites)
            for text, part in zip(texts, parts, strict=True)
        ]
        if all(fits):
            return texts
    return [text if fit else "" for text, fit in zip(texts, fits, strict=True)]

"""The style of all figures: theme, colours, titles, heatmaps and ticks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import matplotlib
import numpy as np
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import offset_copy
from numpy.typing import NDArray

from ela_probe.analysis.result import StageAnalysis
from ela_probe.report.site_labels import short
from ela_probe.sites import Action
from ela_probe.system.arrays import Floats
from ela_probe.system.numbers import counted, readable

INK, MUTED = "#222222", "#666666"
THEME: dict[str, Any] = {
    **sns.axes_style("white"),
    **sns.plotting_context("paper", font_scale=1.1),
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: equal figures on all machines
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#999999",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "figure.dpi": 110,
    "text.parse_math": False,  # a name may hold dollar signs
    "svg.fonttype": "none",  # text stays text
}
ANNOTATED = 9  # the most rows and columns of a heatmap whose cells show their values
TICKS = 30  # the most tick labels along an axis
POINTS = 10.0  # the size of a tick label

# Of seaborn's "colorblind" palette, for hues that also differ in lightness.
SHAPE, MASS, FIT = "#0173b2", "#de8f05", "#cc3311"
ACTIONS: dict[Action, str] = {
    "keep": "#0173b2",
    "recur": "#029e73",
    "affine": "#de8f05",
    "skip": "#f0c05a",
    "drop": "#cccccc",
}
MARKERS: dict[Action, str] = {"keep": "o", "recur": "^", "affine": "s", "skip": "o", "drop": "v"}


@contextmanager
def drawing(ax: Axes | None, size: tuple[float, float]) -> Iterator[tuple[Figure, Axes]]:
    """`ax` and its figure, or new ones of `size` inches, under the theme."""
    with matplotlib.rc_context(cast(Any, THEME)):
        own = ax is None
        if ax is None:
            figure = Figure(figsize=size, layout="constrained")
            FigureCanvasAgg(figure)
            ax = figure.add_subplot()
        for text in cast("list[Text]", ax.findobj(Text)):
            text.set_parse_math(False)  # where `ax` was made without the theme
        figure = cast(Figure, ax.figure)
        yield figure, ax
        if own and (engine := figure.get_layout_engine()) is not None:
            engine.execute(figure)  # a square axes with a legend needs two rounds


def axes_inches(axes: Axes) -> tuple[float, float]:
    """Width and height of axes, before a layout engine moves them."""
    figure, box = cast(Figure, axes.figure), axes.get_position(original=True)
    return box.width * figure.get_figwidth(), box.height * figure.get_figheight()


def title(axes: Axes, text: str, note: str, *, of: str = "") -> None:
    """A bold title, and a muted note below it.

    Args:
        of: the name of what is shown, in front of the title; cut so that the title fits.
    """
    if of:
        letters = int(72 * axes_inches(axes)[0] / (0.78 * POINTS))  # bold ones
        text = f"{short(of, max(9, letters - len(text) - 2))}: {text}"
    axes.set_title(text, loc="left", weight="bold", pad=20)
    axes.annotate(
        note, (0, 1), xycoords="axes fraction", xytext=(0, 7), textcoords="offset points",
        color=MUTED, fontsize="small",
    )  # fmt: skip


def legend_below(axes: Axes, handles: Sequence[Artist] = (), labels: Sequence[str] = ()) -> None:
    """A legend below the axes and their labels, in as many columns as fit between the sides.

    Args:
        handles, labels: those of the axes when empty.
    """
    if not handles:
        handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    figure = cast(Figure, axes.figure)
    width = 72 * axes_inches(axes)[0]
    column = POINTS * (0.55 * max(map(len, labels)) + 3.5)
    axis = axes.xaxis.get_tightbbox()
    pixels = 0.0 if axis is None else axes.bbox.y0 - axis.y0
    below = offset_copy(axes.transAxes, figure, y=-72 * pixels / figure.dpi, units="points")
    axes.legend(
        handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.0), borderaxespad=0.6,
        bbox_transform=below,
        ncols=max(1, min(len(labels), int(1.15 * width / column))), columnspacing=1.5,
    )  # fmt: skip


def sample_note(part: StageAnalysis) -> str:
    """The kind of a stage's weights and the number of samples, as a note."""
    if part.stage.kind == "static":
        return "static weights, the same for every sample"
    return f"{part.stage.kind} weights, {counted(part.samples, 'sample')}"


def empty(axes: Axes, text: str) -> None:
    """A sentence in place of a figure."""
    axes.set_axis_off()
    axes.text(
        0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=MUTED, wrap=True
    )


def heatmap(
    axes: Axes,
    values: Floats,
    *,
    mask: NDArray[np.bool_],
    norm: Normalize,
    cmap: str,
    label: str,
    extend: str = "neither",
    square: bool = True,
) -> Colorbar:
    """seaborn's heatmap; a small one shows the values in its cells. Masked cells stay empty.

    Returns: the colour bar.
    """
    few = max(values.shape) <= ANNOTATED
    sns.heatmap(
        np.where(mask, np.nan, values),
        ax=axes,
        mask=mask,
        norm=norm,
        cmap=cmap,
        square=square,
        linewidths=0.8 if few else 0.0,
        annot=np.vectorize(partial(readable, digits=2), otypes=[str])(values) if few else False,
        fmt="",
        annot_kws={"fontsize": 10 if len(values) <= 6 else 8},
        cbar_kws={"label": label, "extend": extend, "shrink": 0.8, "aspect": 30},
        xticklabels=False,
        yticklabels=False,
        rasterized=not few,  # an SVG of 187 x 187 paths would have megabytes
    )
    return cast(Colorbar, axes.collections[0].colorbar)


def cell_ticks(axes: Axes, columns: Sequence[str], rows: Sequence[str]) -> None:
    """Label the cells of a heatmap, as many as there is room for."""
    fit_ticks(axes, "x", [k + 0.5 for k in range(len(columns))], columns)
    fit_ticks(axes, "y", [k + 0.5 for k in range(len(rows))], rows)


def fit_ticks(axes: Axes, axis: str, places: Sequence[float], labels: Sequence[str]) -> None:
    """Evenly spaced tick labels, at most TICKS of them: only as many as don't overlap.

    Long labels along x are rotated. The size of the axes is that before a layout engine moves them.

    Args:
        axis: x or y. places: in data coordinates. labels: of every place.
    """
    width, height = axes_inches(axes)
    if axes.get_aspect() != "auto":  # equal scales
        width = height = min(width, height)
    room = 72 * 0.9 * (width if axis == "x" else height) / max(1, len(labels))  # points a label
    line, longest = 1.25 * POINTS, 0.65 * POINTS * (max(map(len, labels), default=0) + 1)
    least = -(-len(labels) // TICKS)
    step, level = (max(least, math.ceil(size / room)) for size in (line, longest))
    rotate = axis == "x" and level > 2 * step
    if axis == "x" and not rotate:
        step = level
    chosen = range(0, len(labels), step)
    drawn = [places[k] for k in chosen], [labels[k] for k in chosen]
    if axis == "x":
        axes.set_xticks(*drawn)
        axes.tick_params("x", rotation=90 if rotate else 0)
    else:
        axes.set_yticks(*drawn)
        axes.tick_params("y", rotation=0)

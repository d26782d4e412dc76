"""The style of all figures: theme, colour scales, ticks and site labels."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import matplotlib
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ela_probe.system.arrays import Floats
from ela_probe.system.numbers import readable

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
}
ANNOTATED = 9  # the most rows and columns of a heatmap whose cells show their values
TICKS = 18  # the most tick labels along an axis


@contextmanager
def drawing(ax: Axes | None, size: tuple[float, float]) -> Iterator[tuple[Figure, Axes]]:
    """`ax` and its figure, or new ones of `size` inches, under the theme."""
    with matplotlib.rc_context(cast(Any, THEME)):
        if ax is None:
            figure = Figure(figsize=size, layout="constrained")
            FigureCanvasAgg(figure)
            ax = figure.add_subplot()
        yield cast(Figure, ax.figure), ax


def title(axes: Axes, text: str, note: str) -> None:
    """A bold title, and a muted note below it."""
    axes.set_title(text, loc="left", weight="bold", pad=20)
    axes.annotate(
        note, (0, 1), xycoords="axes fraction", xytext=(0, 7), textcoords="offset points",
        color=MUTED, fontsize="small",
    )  # fmt: skip


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
) -> None:
    """seaborn's heatmap; a small one shows the values in its cells. Masked cells stay empty."""
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
    )


def robust_norm(values: Floats) -> tuple[Normalize, str]:
    """A colour scale that outliers don't stretch, and which ends of its bar are open.

    It starts at 0, or is logarithmic if the 2nd and 98th percentiles of the positive values are
    more than two decades apart.

    Args:
        values: [n], not negative; NaN is ignored.
    """
    values = values[np.isfinite(values)]
    positive = values[values > 0]
    if not positive.size:
        return Normalize(0.0, 1.0), "neither"
    low, high = np.quantile(positive, [0.02, 0.98])
    above = bool(values.max() > high * 1.5)
    top = float(high if above else values.max())
    if high > 100 * low:
        bottom = max(float(low), top * 1e-6)
        below = bool(values.min() < bottom)
        ends = {(True, True): "both", (True, False): "min", (False, True): "max"}
        return LogNorm(bottom, top, clip=True), ends.get((below, above), "neither")
    return Normalize(0.0, top if above else 1.1 * top), "max" if above else "neither"


def cell_ticks(axes: Axes, columns: Sequence[str], rows: Sequence[str]) -> None:
    """Label the cells of a heatmap, at most TICKS along an axis. Long labels are rotated."""
    for axis, labels in ((axes.xaxis, columns), (axes.yaxis, rows)):
        ticks = range(0, len(labels), -(-len(labels) // TICKS))
        axis.set_ticks([k + 0.5 for k in ticks], [labels[k] for k in ticks])
    long = max(map(len, columns)) * min(len(columns), TICKS) > 50
    axes.tick_params("x", rotation=90 if long else 0)
    axes.tick_params("y", rotation=0)


def short_labels(names: Sequence[str], longest: int = 14) -> list[str]:
    """The parts by which qualified names differ.

    >>> short_labels(["stages.0.1.retrieval", "stages.0.2.retrieval"])
    ['1', '2']
    """
    parts = [_parts(name) for name in names]
    head, tail = _common(parts)
    labels = ["".join(p[head : len(p) - tail]).lstrip(".@") for p in parts]
    return [text if len(text) <= longest else "…" + text[1 - longest :] for text in labels]


def shared_name(names: Sequence[str], longest: int = 40) -> str:
    """The common parts of qualified names around a star, such as `stages.0.*.retrieval`."""
    parts = [_parts(name) for name in names]
    if len(parts) < 2:
        return short(names[0], longest)
    head, tail = _common(parts)
    start, first = "".join(parts[0][:head]), parts[0]
    end = "".join(first[len(first) - tail :])
    star = ".*" if start and first[head].startswith(".") else "*"
    return short(start + star + end, longest)


def short(name: str, longest: int = 32) -> str:
    """A name cut in its middle to at most `longest` characters."""
    if len(name) <= longest:
        return name
    half = (longest - 1) // 2
    return name[:half] + "…" + name[-half:]


def _parts(name: str) -> list[str]:
    """`a.b@1` as ["a", ".b", "@1"]."""
    return re.findall(r"^[^.@]+|[.@][^.@]*", name) or [name]


def _common(parts: Sequence[Sequence[str]]) -> tuple[int, int]:
    """How many leading and trailing parts all names share; one part of each is always left."""
    spare = min(map(len, parts)) - 1
    head = 0
    while head < spare and len({p[head] for p in parts}) == 1:
        head += 1
    tail = 0
    while tail < spare - head and len({p[-1 - tail] for p in parts}) == 1:
        tail += 1
    return head, tail

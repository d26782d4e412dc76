"""Figures of benchmarks, in the style of the package's own (ela_probe.report.figure_style)."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, cast

import matplotlib
import seaborn as sns
import typer
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ela_probe.report.figure_style import INK, MUTED, THEME
from ela_probe.system.storage import replacing

FigurePath = Annotated[
    Path | None, typer.Option("--figure", help="Draw the result into this PNG file.")
]
# Of seaborn's "colorblind" palette: what is measured first, then what it is compared with.
COLOURS = ("#0173b2", "#de8f05", "#029e73", "#cc78bc", "#949494")


@contextmanager
def panels(count: int, *, size: tuple[float, float]) -> Iterator[tuple[Figure, Sequence[Axes]]]:
    """A figure of `count` panels side by side, each of `size` inches, under the theme."""
    with matplotlib.rc_context(cast(Any, THEME)):
        figure = Figure(figsize=(size[0] * count, size[1]), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, [figure.add_subplot(1, count, k + 1) for k in range(count)]


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, whole or not at all. Raises OutputError."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})


def bars(
    axes: Axes,
    values: Mapping[str, float],
    *,
    label: str,
    log: bool = False,
    ours: Sequence[str] = (),
    limit: float | None = None,
) -> None:
    """Horizontal bars with their values written beside them.

    Args:
        values: by name, positive, from top to bottom. label: of the axis, with its unit.
        ours: names drawn in the first colour. limit: a required value, drawn as a line.
    """
    names, heights = list(values), list(values.values())
    colours = [COLOURS[0] if name in ours else COLOURS[4] for name in names]
    sns.barplot(x=heights, y=names, hue=names, palette=colours, legend=False, ax=axes, width=0.65)
    if log:
        axes.set_xscale("log")
    for place, height in enumerate(heights):
        axes.annotate(
            f"{height:.3g}", (height, place), xytext=(4, 0), textcoords="offset points",
            va="center", fontsize="small", color=INK,
        )  # fmt: skip
    axes.margins(x=0.15)
    if limit is not None:
        axes.axvline(limit, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xlabel(label)
    axes.set_ylabel("")


def spread(
    axes: Axes,
    samples: Mapping[str, Sequence[float]],
    *,
    label: str,
) -> None:
    """Boxes over the rounds of each contestant, with every round as a point."""
    names = [name for name, values in samples.items() for _ in values]
    heights = [value for values in samples.values() for value in values]
    palette = list(COLOURS[: len(samples)])
    sns.boxplot(
        x=names, y=heights, hue=names, palette=palette, legend=False, ax=axes, width=0.5,
        showfliers=False, boxprops={"alpha": 0.5},
    )  # fmt: skip
    sns.stripplot(x=names, y=heights, hue=names, palette=palette, legend=False, ax=axes, size=4)
    axes.set_ylabel(label)
    axes.set_xlabel("")


def lines(
    axes: Axes,
    x: Sequence[float],
    series: Mapping[str, Sequence[float]],
    *,
    xlabel: str,
    ylabel: str,
) -> None:
    """A line with markers for each series over the same `x`, on logarithmic axes."""
    for colour, (name, values) in zip(COLOURS, series.items(), strict=False):
        sns.lineplot(x=list(x), y=list(values), ax=axes, label=name, color=colour, marker="o")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.legend()


def heading(axes: Axes, text: str, note: str = "") -> None:
    """A bold line above a panel, and a muted one below it."""
    axes.set_title(text, loc="left", weight="bold", pad=20 if note else 8)
    if note:
        axes.annotate(
            note, (0, 1), xycoords="axes fraction", xytext=(0, 7), textcoords="offset points",
            color=MUTED, fontsize="small",
        )  # fmt: skip

"""Figures of a training run with ELA: what every epoch measured, removed and reached."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from ela_probe.errors import OptionError
from ela_probe.report.figure_style import (
    ACTIONS,
    INK,
    MASS,
    SHAPE,
    cell_ticks,
    drawing,
    empty,
    fit_ticks,
    heatmap,
    legend_below,
    title,
)
from ela_probe.report.nats_scale import NatsScale
from ela_probe.report.site_labels import shared_name, short_labels

if TYPE_CHECKING:
    import pandas as pd

VALUES = {
    "kl": "Divergence from the retrieval before, over epochs",
    "shape": "Shape part of the divergence, over epochs",
    "mass": "Mass part of the divergence, over epochs",
    "damage": "Predicted damage, over epochs",
}


def site_history(
    table: pd.DataFrame, value: str = "kl", *, ax: Axes | None = None
) -> tuple[Figure, Axes]:
    """A value of every site (rows) after every epoch (columns) of a run with ELA, in nats.

    A removed site has a frame in the colour of its action; it keeps the value that it had last.

        site_history(pd.read_csv("runs/x/ela.csv"), "damage")

    Args:
        table: the rows of `ela.csv`, which `train --ela` writes until the plan is final.
        value: kl, shape, mass, damage.

    Raises:
        OptionError: no such value, or a column is missing.
    """
    if value not in VALUES:
        raise OptionError(f"no value is called {value!r}; expected one of {', '.join(VALUES)}")
    _check_columns(table, ("epoch", "site", "action", value), "ela.csv")
    names, epochs = list(dict.fromkeys(table["site"])), sorted(set(table["epoch"]))
    values, actions = (
        table.pivot(index="site", columns="epoch", values=column).loc[names, epochs].to_numpy()
        for column in (value, "action")
    )
    values = values.astype(np.float64)
    height = min(9.0, max(3.0, 2.0 + 0.16 * len(names)))
    with drawing(ax, (6.5, height)) as (figure, axes):
        title(axes, VALUES[value], "nats, averages over epochs; frames: removed retrievals")
        if not np.isfinite(values).any():
            empty(axes, f"{value} was not measured")
            return figure, axes
        scale = NatsScale.of(values) if value != "damage" else NatsScale.of(values, mark=None)
        bar = heatmap(
            axes, values, mask=~np.isfinite(values), norm=scale.norm(), cmap="rocket_r",
            label="nats", square=False,
        )  # fmt: skip
        scale.label(bar)
        cell_ticks(axes, [str(epoch) for epoch in epochs], short_labels(names))
        used = [action for action in ACTIONS if action != "keep" and (actions == action).any()]
        for row, own in enumerate(actions):
            removed = np.flatnonzero(own != "keep")
            if removed.size:  # a retrieval that was removed does not come back
                first, width = removed[0] + 0.06, len(epochs) - removed[0] - 0.12
                frame = Rectangle((first, row + 0.1), width, 0.8, fill=False, linewidth=1.5)
                frame.set_edgecolor(ACTIONS[own[-1]])
                axes.add_patch(frame)
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"site  ({shared_name(names)})")
        legend_below(axes, [Patch(color=ACTIONS[a]) for a in used], used)
    return figure, axes


def skipping_history(table: pd.DataFrame, *, ax: Axes | None = None) -> tuple[Figure, Axes]:
    """Accuracy (of detectors AP) and the skipped share of the retrievals, over the epochs of a run.

    Args:
        table: the rows of `metrics.csv`, which `train` writes.

    Raises:
        OptionError: a column is missing.
    """
    figure_of_task = "val_ap" if "val_ap" in table else "train_accuracy"
    _check_columns(table, ("epoch", figure_of_task), "metrics.csv")
    with drawing(ax, (6.0, 3.8)) as (figure, axes):
        title(axes, "Training", "shares of 1")
        epochs = table["epoch"].to_numpy()
        if "skipped" in table:
            skipped = table["skipped"].fillna(0.0)
            axes.fill_between(
                epochs, skipped, step="mid", color=MASS, alpha=0.35, linewidth=0,
                label="retrievals skipped",
            )  # fmt: skip
        for column, colour, style, text in (
            ("train_accuracy", SHAPE, "--", "training accuracy"),
            ("val_accuracy", INK, "-", "validation accuracy"),
            ("val_ap", INK, "-", "validation AP"),
        ):
            if column in table and table[column].notna().any():
                axes.plot(
                    epochs, table[column], style, color=colour, marker="o", markersize=3,
                    label=text,
                )  # fmt: skip
        axes.set_ylim(0, 1.02)
        axes.set_xlim(epochs.min() - 0.5, epochs.max() + 0.5)
        fit_ticks(axes, "x", list(epochs), [str(epoch) for epoch in epochs])
        axes.set_xlabel("epoch")
        legend_below(axes)
    return figure, axes


def _check_columns(table: pd.DataFrame, needed: tuple[str, ...], file: str) -> None:
    missing = [name for name in needed if name not in table]
    if missing or table.empty:
        raise OptionError(
            f"got a table with {len(table)} rows and without {', '.join(missing) or 'epochs'}; "
            f"expected the rows of {file}, which `ela-probe train` writes"
        )

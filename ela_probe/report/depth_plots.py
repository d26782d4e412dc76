"""Figures along the depth of a network: divergence of neighbours, damage, and both together."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ela_probe.analysis.damage import MEASURED
from ela_probe.analysis.findings import NEAR, NEAR_VALUES
from ela_probe.analysis.result import Analysis
from ela_probe.pruning.ablation import Ablation
from ela_probe.pruning.correlations import spearman
from ela_probe.report.depth_axis import depth_axis, depth_size
from ela_probe.report.figure_style import (
    ACTIONS,
    INK,
    MARKERS,
    MASS,
    MUTED,
    SHAPE,
    drawing,
    empty,
    legend_below,
    title,
)
from ela_probe.report.nats_scale import NatsScale
from ela_probe.sites import Action
from ela_probe.system.arrays import Floats
from ela_probe.system.numbers import counted, readable


def adjacent_divergence(analysis: Analysis, *, ax: Axes | None = None) -> tuple[Figure, Axes]:
    """Every retrieval's divergence from the one before it along depth, in nats.

    The height of a bar is kl, on a `NatsScale`; its colours divide it as shape and mass divide kl.
    The dot is kl too, so that a divergence of 0 is seen, with ± 2 standard errors; it is hollow
    below 0.05 nats. A first site of a stage has a grey band in place of a bar.
    """
    shape, mass, error = (
        np.concatenate([part.adjacent(name) for part in analysis.stages])
        for name in ("shape", "mass", "kl_se")
    )
    count = len(shape)
    with drawing(ax, depth_size(count)) as (figure, axes):
        title(axes, "Divergence from the retrieval before", "nats; whiskers: ± 2 standard errors")
        kl = shape + mass
        x = np.flatnonzero(np.isfinite(kl))
        reach = np.where(np.isfinite(error), 2 * error, 0.0)
        scale = NatsScale.of(kl + reach)
        share = np.divide(shape, kl, out=np.zeros(count), where=kl > 0)
        bent = np.array([scale.inverse(p) for p in share[x] * scale.positions(kl[x])])
        axes.bar(x, bent, 0.8, color=SHAPE, label="shape: read differently")
        axes.bar(x, kl[x] - bent, 0.8, bottom=bent, color=MASS, label="mass: on new sources")
        axes.errorbar(
            x, kl[x], [np.minimum(reach[x], kl[x]), reach[x]],
            fmt="none", ecolor=INK, elinewidth=1, capsize=2 if count < 40 else 0,
        )  # fmt: skip
        size = 4.5 if count < 40 else 2.5
        for near, fill, text in ((False, INK, None), (True, "white", f"below {NEAR}: repeats it")):
            own = x[(kl[x] < NEAR) == near]
            if not own.size:
                continue
            axes.plot(
                own, kl[own], "o", markersize=size, markerfacecolor=fill, markeredgecolor=INK,
                markeredgewidth=0.8, label=text, clip_on=False,
            )  # fmt: skip
        scale.apply(axes, margin=0.12)
        depth_axis(axes, analysis)
        axes.set_ylabel("kl [nats]")
        legend_below(axes)
        if not x.size:
            empty(axes, "no stage has two retrievals")
    return figure, axes


def adjacent_distance(analysis: Analysis, *, ax: Axes | None = None) -> tuple[Figure, Axes]:
    """Of `signed` weights: how far each site's mixed values are from those of the one before.

    Filled: l2, relative to the larger norm; hollow: 1 − cosine. Whiskers: ± 2 standard errors. The
    dashed line is at l2 = 0.1. Stages of other weights stay empty.
    """
    with drawing(ax, depth_size(sum(len(p.stage.sites) for p in analysis.stages))) as (
        figure,
        axes,
    ):
        title(
            axes,
            "Distance of mixed values from the site before",
            "relative; whiskers: ± 2 standard errors",
        )
        drawn = []
        for shift, measure, fill, text in (
            (-0.12, "l2", INK, "l2"), (0.12, "cosine", "white", "1 − cosine"),
        ):  # fmt: skip
            mean, error = (
                np.concatenate([part.adjacent(name) for part in analysis.stages])
                for name in (measure, f"{measure}_se")
            )
            x = np.flatnonzero(np.isfinite(mean))
            reach = np.where(np.isfinite(error[x]), 2 * error[x], 0.0)
            axes.errorbar(
                x + shift, mean[x], reach, fmt="o", markersize=4.5 if len(mean) < 40 else 2.5,
                markerfacecolor=fill, markeredgecolor=INK, markeredgewidth=0.8, elinewidth=1,
                ecolor=INK, label=text,
            )  # fmt: skip
            drawn += [mean[x] + reach]
        NatsScale.of(np.concatenate(drawn), mark=NEAR_VALUES).apply(axes, margin=0.12)
        depth_axis(axes, analysis)
        axes.set_ylabel("distance  (0: equal)")
        legend_below(axes)
        if not drawn[0].size:
            empty(axes, "no stage of signed weights has two sites")
    return figure, axes


def damage_along_depth(
    analysis: Analysis,
    *,
    ablation: Ablation | None = None,
    actions: Collection[Action] = MEASURED,
    ax: Axes | None = None,
) -> tuple[Figure, Axes]:
    """What each action at each site is predicted to add to the loss, in nats, ± 2 standard errors.

    Args:
        ablation: the measured changes, drawn hollow to the right of the predicted ones.
        actions: those that are drawn, of skip, affine and recur.
    """
    sites = [(part, t) for part in analysis.stages for t in range(len(part.stage.sites))]
    with drawing(ax, depth_size(len(sites), height=4.4)) as (figure, axes):
        title(
            axes,
            "Damage: what an action adds to the loss",
            "nats, of one site alone; whiskers: ± 2 standard errors",
        )
        drawn = list[tuple[Action, bool, Floats, Floats]]()
        for action in (a for a in MEASURED if a in actions):
            found = [None if p.damage is None else p.damage.of(t, action) for p, t in sites]
            drawn.append((action, False, *_columns([None if e is None else e[:2] for e in found])))
            if ablation is not None:
                measured = measured_changes(ablation, action)
                names = [part.stage.sites[t].name for part, t in sites]
                drawn.append((action, True, *_columns([measured.get(name) for name in names])))
        drawn = [entry for entry in drawn if np.isfinite(entry[2]).any()]
        if not drawn:
            empty(axes, "damage was not measured")
            return figure, axes
        reach = [np.where(np.isfinite(se), 2 * se, 0.0) for *_, se in drawn]
        means = np.stack([mean for _, _, mean, _ in drawn])
        few = len(sites) < 40
        for number, ((action, is_measured, mean, _), whisker) in enumerate(
            zip(drawn, reach, strict=True)
        ):
            x = np.arange(len(sites)) + 0.7 * ((number + 0.5) / len(drawn) - 0.5)
            axes.errorbar(
                x, mean, whisker, fmt=MARKERS[action], markersize=5 if few else 4,
                markerfacecolor="white" if is_measured else ACTIONS[action], markeredgecolor=INK,
                markeredgewidth=0.7 if few else 0.4, elinewidth=1, ecolor=INK if few else "#aaaaaa",
                label=f"{action}, {'measured' if is_measured else 'predicted'}",
            )  # fmt: skip
        noise = float(np.nanmedian([se for *_, se in drawn]))
        ends = np.stack([means - reach, means + reach])
        NatsScale.of(ends, mark=None, finest=2 * noise).apply(axes, margin=0.12)
        axes.axhline(0, color=MUTED, linewidth=0.8, zorder=0)
        depth_axis(axes, analysis, first=False)
        axes.set_ylabel("change of the loss [nats]")
        legend_below(axes)
    return figure, axes


def damage_against_divergence(
    analysis: Analysis,
    *,
    action: Action = "skip",
    ablation: Ablation | None = None,
    ax: Axes | None = None,
) -> tuple[Figure, Axes]:
    """Every site by its divergence from the one before it and by the damage of an action.

    Where divergence told what a retrieval is worth, the points would rise from left to right. The
    first sites of the stages have no divergence and are left out. Colours are depth. Where all
    weights are `signed`, l2 of the mixed values takes the place of the divergence.

    Args:
        ablation: the measured changes, drawn hollow and joined to the predicted ones.
    """
    rows = list[tuple[float, float, float, str]]()
    offset, measure = 0, analysis.measures[0]
    for part in analysis.stages:
        kl = part.adjacent(measure)
        for t in range(1, len(kl)):
            found = None if part.damage is None else part.damage.of(t, action)
            if found is not None and np.isfinite(kl[t]):
                rows.append((kl[t], found.mean, offset + t, part.stage.sites[t].name))
        offset += len(kl)
    with drawing(ax, (6.0, 5.0)) as (figure, axes):
        by_kl = measure == "kl"
        name = "Damage against divergence" if by_kl else "Damage against distance"
        if not rows:
            title(axes, name, f"of {action}")
            empty(axes, f"the damage of {action} was not measured")
            return figure, axes
        kl, damage, depth = (np.array([row[k] for row in rows], float) for k in range(3))
        rank = readable(spearman(kl, damage), digits=2).replace("-", "−")
        title(axes, name, f"{action}, {counted(len(rows), 'site')}, rank correlation {rank}")
        measured = {} if ablation is None else measured_changes(ablation, action)
        changes = np.array([measured.get(row[3], (math.nan, 0.0))[0] for row in rows])
        axes.vlines(kl, damage, changes, color="#999999", linewidth=0.8, zorder=1)
        points = axes.scatter(
            kl, damage, c=depth, cmap="cividis", s=34, edgecolor=INK, linewidth=0.6, zorder=2,
            clip_on=False,
            label="predicted",
        )  # fmt: skip
        if np.isfinite(changes).any():
            axes.scatter(
                kl, changes, s=34, facecolor="none", edgecolor=INK, linewidth=0.8, zorder=2,
                clip_on=False,
                label="measured",
            )  # fmt: skip
        NatsScale.of(kl, mark=NEAR if by_kl else NEAR_VALUES).apply(axes, "x")
        NatsScale.of(np.concatenate([damage, changes]), mark=None).apply(axes)
        axes.set_xlabel(
            "kl from the retrieval before [nats]" if by_kl else "l2 from the mixed values before"
        )
        axes.set_ylabel(f"change of the loss under {action} [nats]")
        legend_below(axes)
        if len(rows) > 1:
            bar = figure.colorbar(points, ax=axes, label="depth", shrink=0.8, aspect=30)
            bar.set_ticks([float(depth.min()), float(depth.max())], labels=["first", "last"])
    return figure, axes


def measured_changes(ablation: Ablation, action: Action) -> dict[str, tuple[float, float]]:
    """By site name the measured loss change of an action and its standard error, in nats."""
    n = ablation.samples
    return {c.site: (c.mean(n), c.error(n)) for c in ablation.changes if c.action == action}


def _columns(pairs: Sequence[tuple[float, ...] | None]) -> tuple[Floats, Floats]:
    """Means and standard errors as arrays, NaN where there is none."""
    rows = np.array([(math.nan, math.nan) if pair is None else pair for pair in pairs], dtype=float)
    return rows[:, 0], rows[:, 1]

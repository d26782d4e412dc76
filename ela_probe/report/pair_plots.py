"""Figures of one stage: the divergence of every pair, mean weights, and which sites are alike."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.transforms import Affine2D, ScaledTranslation, blended_transform_factory
from scipy.cluster import hierarchy
from scipy.spatial import distance

from ela_probe.analysis.findings import NEAR, NEAR_VALUES
from ela_probe.analysis.result import StageAnalysis
from ela_probe.errors import OptionError
from ela_probe.pruning.plan import SkipPlan
from ela_probe.report.figure_style import (
    ACTIONS,
    SHAPE,
    cell_ticks,
    drawing,
    empty,
    fit_ticks,
    heatmap,
    legend_below,
    sample_note,
    title,
)
from ela_probe.report.nats_scale import NatsScale
from ela_probe.report.site_labels import shared_name, short_labels
from ela_probe.sites import Action

WORDS = {
    "kl": "KL between retrievals",
    "shape": "shape part of the KL",
    "mass": "mass part of the KL",
    "js": "Jensen-Shannon divergence",
    "kl_of_means": "KL of the mean weights",
    "l2": "relative distance of mixed values",
    "cosine": "1 − cosine of mixed values",
}
# Beside a heatmap, in points: how wide the strip of actions is, and how far from the cells.
STRIP, STRIP_GAP = 6.0, 2.0


def divergence_heatmap(
    part: StageAnalysis,
    measure: str | None = None,
    *,
    plan: SkipPlan | None = None,
    ax: Axes | None = None,
) -> tuple[Figure, Axes]:
    """The divergence of every pair i < j of a stage, in nats: [T − 1, T − 1] cells.

    Row i is the earlier site and column j the later one; neighbours are on the diagonal. Colours
    follow `NatsScale`, with a line at 0.05 nats on their bar. Of `signed` weights the cells are
    distances between mixed values, with the line at 0.1 (`findings.NEAR_VALUES`).

    Args:
        measure: kl (the default), shape, mass, js, or kl_of_means; of `signed` weights l2 (the
            default) or cosine.
        plan: its actions are drawn as strips along both axes.

    Raises:
        OptionError: the stage has no such measure.
        PlanError: the plan has no such stage.
    """
    known = [name for name in WORDS if name in part.divergences]
    measure = part.measures[0] if measure is None else measure
    if measure not in known:
        raise OptionError(f"no measure is called {measure!r}; expected one of {', '.join(known)}")
    unit, mark = ("nats", NEAR) if "kl" in known else (measure, NEAR_VALUES)
    names = [site.name for site in part.stage.sites]
    with drawing(ax, (6.0, 5.2)) as (figure, axes):
        title(axes, WORDS[measure], sample_note(part), of=part.stage.name)
        if len(names) < 2:
            empty(axes, "one retrieval only: nothing to compare")
            return figure, axes
        values = part.divergences[measure][:-1, 1:]
        lower = np.tril(np.ones(values.shape, dtype=bool), -1)
        scale = NatsScale.of(values[~lower], mark=mark)
        bar = heatmap(axes, values, mask=lower, norm=scale.norm(), cmap="rocket_r", label=unit)
        scale.label(bar)
        labels = short_labels(names)
        cell_ticks(axes, labels[1:], labels[:-1])
        axes.set_xlabel(f"later site  ({shared_name(names)})")
        axes.set_ylabel("earlier site")
        if plan is not None:
            actions = [plan.actions[name] for name in names]
            _action_strips(axes, columns=actions[1:], rows=actions[:-1])
    return figure, axes


def weights_heatmap(part: StageAnalysis, *, ax: Axes | None = None) -> tuple[Figure, Axes]:
    """The mean weights of a stage, sites by sources: [T, S] cells, empty beyond S_t.

    Colours are those of a scale from 0, for `signed` weights of one that is symmetric around 0.
    """
    names = [site.name for site in part.stage.sites]
    sizes = part.stage.sizes
    with drawing(ax, (6.0, 5.0)) as (figure, axes):
        title(axes, "mean weights", sample_note(part), of=part.stage.name)
        beyond = np.arange(part.weights.shape[1])[None, :] >= np.array(sizes)[:, None]
        # The first retrieval of a stage has a single source, whose weight is always 1.
        informative = part.weights[~beyond & (np.array(sizes) > 1)[:, None]]
        top = float(np.quantile(np.abs(informative), 0.98)) * 1.1 if informative.size else 1.0
        signed = part.stage.kind == "signed"
        top = 1.0 if top > 0.5 and not signed else top or 1.0
        larger = bool(np.abs(part.weights).max() > top)
        heatmap(
            axes,
            part.weights,
            mask=beyond,
            norm=Normalize(-top if signed else 0.0, top),
            cmap="vlag" if signed else "mako_r",
            label="mean weight",
            extend=("both" if signed else "max") if larger else "neither",
            square=part.weights.shape[1] < 2 * len(names),
        )
        labels = short_labels(names)
        one_source_each = sizes == tuple(range(1, len(names) + 1))
        columns = labels if one_source_each else [str(s) for s in range(part.weights.shape[1])]
        cell_ticks(axes, columns, labels)
        axes.set_ylabel(f"site  ({shared_name(names)})")
        axes.set_xlabel("channel" if part.stage.kind == "channel" else "source")
    return figure, axes


def site_dendrogram(
    part: StageAnalysis, *, plan: SkipPlan | None = None, ax: Axes | None = None
) -> tuple[Figure, Axes]:
    """Which sites of a stage retrieve alike: a tree that joins the most similar ones first.

    Two groups are joined at the mean of √JS over their pairs (average linkage); √JS is a metric
    (Endres & Schindelin 2003), from 0 to √log 2 = 0.83. Of `signed` weights l2 takes the place of
    √JS. Leaves are ordered so that neighbours are alike.

    Args:
        plan: colours the leaves by their actions.

    Raises:
        PlanError: the plan has no such stage.
    """
    names = [site.name for site in part.stage.sites]
    height = min(9.0, max(3.0, 1.6 + 0.2 * len(names)))
    with drawing(ax, (6.0, height)) as (figure, axes):
        title(axes, "sites that retrieve alike", sample_note(part), of=part.stage.name)
        if len(names) < 2:
            empty(axes, "one retrieval only: nothing to compare")
            return figure, axes
        by_values = "js" not in part.divergences
        upper = part.divergences["l2"] if by_values else np.sqrt(part.divergences["js"])
        tree = hierarchy.linkage(
            distance.squareform(upper + upper.T, checks=False), "average", optimal_ordering=True
        )
        found = hierarchy.dendrogram(tree, no_plot=True)
        for depths, places in zip(found["dcoord"], found["icoord"], strict=True):
            axes.plot(depths, [(x - 5) / 10 for x in places], color=SHAPE, linewidth=1.2)
        order = list(found["leaves"] or [])
        labels = short_labels(names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        fit_ticks(axes, "y", range(len(names)), [labels[t] for t in order])
        top = max(float(tree[:, 2].max()), 0.1)
        axes.set_xlim(1.04 * top, 0.0 if plan is None else -0.035 * top)
        axes.yaxis.tick_right()
        axes.spines[["left", "right"]].set_visible(False)
        axes.tick_params("y", length=0)
        axes.tick_params("x", bottom=True)
        name = "l2" if by_values else "√JS"
        axes.set_xlabel(f"{name} at which they are joined  (0: equal)")
        if plan is not None:
            colours = [plan.actions[names[t]] for t in order]
            for row, action in enumerate(colours):
                box = Rectangle((-0.03 * top, row - 0.42), 0.02 * top, 0.84, color=ACTIONS[action])
                axes.add_patch(box)
            _action_legend(axes, colours)
    return figure, axes


def _action_legend(axes: Axes, actions: list[Action]) -> None:
    """The colours of the actions that occur, below the axes."""
    used = [action for action in ACTIONS if action in actions]
    legend_below(axes, [Patch(color=ACTIONS[action]) for action in used], used)


def _action_strips(axes: Axes, *, columns: list[Action], rows: list[Action]) -> None:
    """A box of its action's colour for every column and row, between the cells and the labels."""
    inches = axes.figure.dpi_scale_trans + ScaledTranslation(0, 0, axes.transAxes)  # type: ignore[arg-type]
    points = Affine2D().scale(1 / 72) + inches
    below = blended_transform_factory(axes.transData, points)
    beside = blended_transform_factory(points, axes.transData)
    start = -STRIP_GAP - STRIP
    boxes = [(Rectangle((k, start), 1, STRIP), a, below) for k, a in enumerate(columns)]
    boxes += [(Rectangle((start, k), STRIP, 1), a, beside) for k, a in enumerate(rows)]
    for box, action, transform in boxes:
        box.set(facecolor=ACTIONS[action], edgecolor="white", linewidth=0.3, clip_on=False)
        box.set_transform(transform)
        axes.add_artist(box)
    axes.tick_params(length=0, pad=STRIP + 2 * STRIP_GAP)
    _action_legend(axes, [*columns, *rows])

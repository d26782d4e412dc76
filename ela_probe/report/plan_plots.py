"""Figures of plans: the action of every site, and the skip scores that a plan may be chosen by."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from ela_probe.analysis.ebqm import skip_scores as scores_of
from ela_probe.analysis.result import Analysis
from ela_probe.pruning.plan import SkipPlan
from ela_probe.report.depth_axis import depth_axis, depth_size
from ela_probe.report.figure_style import (
    ACTIONS,
    INK,
    MARKERS,
    MUTED,
    drawing,
    empty,
    fit_ticks,
    legend_below,
    title,
)
from ela_probe.report.site_labels import short, short_labels
from ela_probe.system.numbers import readable

# The most sites of a stage whose boxes hold their names.
LABELLED = 18


def skip_plan(plan: SkipPlan, *, ax: Axes | None = None) -> tuple[Figure, Axes]:
    """The action of every site: a row for each stage, with depth from left to right."""
    longest = max(len(stage.sites) for stage in plan.stages)
    height = 1.5 + 0.38 * len(plan.stages)
    with drawing(ax, (min(12.0, max(6.0, 0.2 * longest)), height)) as (figure, axes):
        charge = "" if plan.charge is None else f", {readable(plan.charge)} nats charged"
        title(
            axes,
            f"Skip plan ({plan.origin.planner})",
            f"{len(plan.skipped)} of {len(plan.actions)} retrievals are not formed{charge}",
        )
        for row, stage in enumerate(plan.stages):
            labels = short_labels([site.name for site in stage.sites])
            for t, site in enumerate(stage.sites):
                box = Rectangle((t - 0.47, row - 0.4), 0.94, 0.8, color=ACTIONS[site.action])
                axes.add_patch(box)
                if longest <= LABELLED and len(labels[t]) <= 3:
                    dark = site.action in ("keep", "recur")
                    axes.text(
                        t, row, labels[t], ha="center", va="center", fontsize="small",
                        color="white" if dark else INK,
                    )  # fmt: skip
        axes.set_xlim(-0.6, longest - 0.4)
        axes.set_ylim(len(plan.stages) - 0.5, -0.5)
        axes.set_yticks(range(len(plan.stages)), [short(stage.name, 20) for stage in plan.stages])
        fit_ticks(axes, "x", range(longest), [str(t) for t in range(longest)])
        axes.set_xlabel("site of the stage, along depth")
        axes.spines[:].set_visible(False)
        used = [action for action in ACTIONS if action in plan.actions.values()]
        axes.legend(
            [Patch(color=ACTIONS[action]) for action in used], used,
            loc="center left", bbox_to_anchor=(1.0, 0.5),
        )  # fmt: skip
    return figure, axes


def skip_scores(
    analysis: Analysis, *, plan: SkipPlan | None = None, ax: Axes | None = None
) -> tuple[Figure, Axes]:
    """The skip score of every site along depth, from 0 to 1: the highest are skipped first.

    Args:
        plan: its actions are the colours and marks, and its target is that of the scores. If it was
            made by scores, a line is drawn at the lowest score that it skips; a site that is kept
            above this line is kept by a guard.

    Raises:
        PlanError: the plan was made for other sites.
    """
    target = analysis.target
    if plan is not None:
        plan.check_sites([part.stage for part in analysis.stages], found="the analysis")
        target = plan.target or target
    scores = np.concatenate([scores_of(part.quantiles, target) for part in analysis.stages])
    names = [site.name for part in analysis.stages for site in part.stage.sites]
    with drawing(ax, depth_size(len(names))) as (figure, axes):
        title(
            axes,
            "Skip scores",
            f"target: mean {target.skip:g}, concentration {target.concentration:g}",
        )
        if not np.isfinite(scores).any():
            empty(axes, "no stage has a Beta fit, so there are no scores")
            return figure, axes
        chosen = np.array([plan.actions[name] if plan else "keep" for name in names])
        few = len(names) < 40
        axes.vlines(np.arange(len(names)), 0, scores, color="#cccccc", linewidth=1, zorder=1)
        for action, colour in ACTIONS.items():
            own = np.flatnonzero((chosen == action) & np.isfinite(scores))
            if own.size:
                axes.plot(
                    own, scores[own], MARKERS[action], color=colour, markeredgecolor=INK,
                    markeredgewidth=0.7 if few else 0.4, markersize=6.5 if few else 4,
                    label=action if plan else "score", clip_on=False,
                )  # fmt: skip
        removed = (chosen != "keep") & np.isfinite(scores)
        if plan is not None and plan.origin.planner == "score" and removed.any():
            threshold = float(scores[removed].min())
            axes.axhline(threshold, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
            axes.annotate(
                f"skipped from\n{threshold:.2f}", (1, threshold), xytext=(3, 0), va="center",
                xycoords=("axes fraction", "data"), textcoords="offset points", color=MUTED,
                fontsize="small",
            )  # fmt: skip
        axes.set_ylim(0, 1.1)
        depth_axis(axes, analysis)
        axes.set_ylabel("skip score")
        legend_below(axes)
    return figure, axes

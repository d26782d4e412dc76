"""Figures of an analysis or a plan: seaborn heatmaps, bars and histograms.

Every function takes an optional `ax`, draws in the project's theme without changing matplotlib's
global settings, and returns the figure and its axes. None of them shows a figure.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from ela_probe.analysis.findings import NEAR, no_fit_reason
from ela_probe.analysis.result import Analysis, StageAnalysis
from ela_probe.errors import OptionError
from ela_probe.pruning.plan import SkipPlan
from ela_probe.report.figure_style import (
    INK,
    MUTED,
    TICKS,
    cell_ticks,
    drawing,
    empty,
    heatmap,
    robust_norm,
    shared_name,
    short,
    short_labels,
    title,
)
from ela_probe.report.log_odds import bin_step, log_odds_density, logit_ticks, rebin, view
from ela_probe.system.arrays import Floats
from ela_probe.system.numbers import readable
from ela_probe.system.storage import output_directory, replacing

# Of seaborn's "colorblind" palette, for hues that also differ in lightness.
SHAPE, MASS, FIT = "#0173b2", "#de8f05", "#cc3311"
ACTIONS = {
    "keep": "#0173b2",
    "recur": "#029e73",
    "affine": "#de8f05",
    "skip": "#f0c05a",
    "drop": "#cccccc",
}
WORDS = {
    "kl": "KL between retrievals",
    "shape": "shape part of the KL",
    "mass": "mass part of the KL",
    "js": "Jensen-Shannon divergence",
    "kl_of_means": "KL of the mean weights",
}


def divergence_heatmap(
    part: StageAnalysis, measure: str = "kl", *, ax: Axes | None = None
) -> tuple[Figure, Axes]:
    """The divergence of every pair i < j of a stage, in nats: [T − 1, T − 1] cells.

    Row i is the earlier site and column j the later one; neighbours are on the diagonal. Colours
    are logarithmic if the values span more than two decades, and clipped at their 2nd and 98th
    percentiles.

    Args:
        measure: kl, shape, mass, js, or kl_of_means.

    Raises:
        OptionError: no such measure.
    """
    if measure not in WORDS:
        raise OptionError(f"no measure is called {measure!r}; expected one of {', '.join(WORDS)}")
    names = [site.name for site in part.stage.sites]
    with drawing(ax, (6.0, 5.0)) as (figure, axes):
        title(axes, f"{short(part.stage.name)}: {WORDS[measure]}", _sample(part))
        if len(names) < 2:
            empty(axes, "one retrieval only: nothing to compare")
            return figure, axes
        values = part.divergences[measure][:-1, 1:]
        lower = np.tril(np.ones(values.shape, dtype=bool), -1)
        norm, extend = robust_norm(values[~lower])
        heatmap(
            axes,
            values,
            mask=lower,
            norm=norm,
            cmap="rocket_r",
            label="nats",
            extend=extend,
        )
        labels = short_labels(names)
        cell_ticks(axes, labels[1:], labels[:-1])
        axes.set_xlabel(f"later site  ({shared_name(names)})")
        axes.set_ylabel("earlier site")
    return figure, axes


def weights_heatmap(part: StageAnalysis, *, ax: Axes | None = None) -> tuple[Figure, Axes]:
    """The mean weights of a stage, sites by sources: [T, S] cells, empty beyond S_t."""
    names = [site.name for site in part.stage.sites]
    sizes = part.stage.sizes
    with drawing(ax, (6.0, 5.0)) as (figure, axes):
        title(axes, f"{short(part.stage.name)}: mean weights", _sample(part))
        beyond = np.arange(part.weights.shape[1])[None, :] >= np.array(sizes)[:, None]
        # The first retrieval of a stage has a single source, whose weight is always 1.
        informative = part.weights[~beyond & (np.array(sizes) > 1)[:, None]]
        top = float(np.quantile(informative, 0.98)) * 1.1 if informative.size else 1.0
        top = 1.0 if top > 0.5 else top
        heatmap(
            axes,
            part.weights,
            mask=beyond,
            norm=Normalize(0.0, top),
            cmap="mako_r",
            label="mean weight",
            extend="max" if part.weights.max() > top else "neither",
            square=part.weights.shape[1] < 2 * len(names),
        )
        labels = short_labels(names)
        one_source_each = sizes == tuple(range(1, len(names) + 1))
        columns = labels if one_source_each else [str(s) for s in range(part.weights.shape[1])]
        cell_ticks(axes, columns, labels)
        axes.set_ylabel(f"site  ({shared_name(names)})")
        axes.set_xlabel("channel" if part.stage.kind == "channel" else "source")
    return figure, axes


def adjacent_divergence(analysis: Analysis, *, ax: Axes | None = None) -> tuple[Figure, Axes]:
    """Every retrieval's divergence from the one before it along depth, in nats.

    Bars stack shape and mass, whose sum is kl; the whiskers are ± 2 standard errors of kl. The
    first site of a stage has no bar.
    """
    count = sum(len(part.stage.sites) for part in analysis.stages)
    with drawing(ax, (min(12.0, max(6.0, 0.17 * count)), 4.0)) as (figure, axes):
        title(axes, "Divergence from the retrieval before", "nats; whiskers: ± 2 standard errors")
        shape, mass, error = (
            np.concatenate([part.adjacent(name) for part in analysis.stages])
            for name in ("shape", "mass", "kl_se")
        )
        kl = shape + mass
        x = np.flatnonzero(np.isfinite(kl))
        axes.bar(x, shape[x], 0.8, color=SHAPE, label="shape: read differently")
        axes.bar(x, mass[x], 0.8, bottom=shape[x], color=MASS, label="mass: on new sources")
        known = x[np.isfinite(error[x])]
        whisker = 2 * error[known]
        axes.errorbar(
            known, kl[known], [np.minimum(whisker, kl[known]), whisker],
            fmt="none", ecolor=INK, elinewidth=1, capsize=2 if count < 40 else 0,
        )  # fmt: skip
        axes.axhline(NEAR, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        axes.set_xlim(-0.7, count - 0.3)
        top = _clip_bars(axes, x, kl, error)
        if top > NEAR:
            axes.annotate(
                f"{NEAR}", (1, NEAR), xycoords=("axes fraction", "data"), xytext=(3, 0),
                textcoords="offset points", va="center", color=MUTED, fontsize="small",
            )  # fmt: skip
        _stage_axis(axes, analysis)
        axes.set_ylabel("kl [nats]")
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
        if not x.size:
            empty(axes, "no stage has two retrievals")
    return figure, axes


def beta_histogram(part: StageAnalysis, *, ax: Axes | None = None) -> tuple[Figure, Axes]:
    """Histogram of a stage's adjacent u = 1 − exp(−kl) with the fitted Beta density.

    The axis is log-odds, log(u / (1 − u)), labelled by u. On it the density of any Beta
    distribution is bounded, even if its density over u has poles at 0 or 1. Heights are shares per
    unit of log-odds, so that the bars have area 1. Without a fit it draws no curve and says why.
    """
    with drawing(ax, (6.0, 5.0)) as (figure, axes):
        title(axes, f"{short(part.stage.name)}: u of neighbours, 1 − exp(−kl)", _sample(part))
        reason = no_fit_reason(part)
        histogram, n = part.pooled.histogram, part.pooled.n
        if not n:
            empty(axes, f"no fit: {reason}")
            return figure, axes
        low, high = view(histogram)
        edges, heights = rebin(histogram, step=bin_step(high - low, n))
        axes.stairs(heights, edges, fill=True, color=SHAPE, alpha=0.55, label="observed")
        if part.fit is not None:
            x = np.linspace(low, high, 400)
            name = f"Beta({readable(part.fit.alpha)}, {readable(part.fit.beta)})"
            axes.plot(
                x, log_odds_density(part.fit, x), color=FIT, linewidth=2,
                label=f"{name}   KS {part.fit.ks:.2f}   n {n}",
            )  # fmt: skip
        else:
            text = textwrap.fill(f"no fit: {reason}", 45)
            axes.text(0.02, 0.98, text, transform=axes.transAxes, va="top", color=MUTED)
        axes.set_xlim(low, high)
        axes.set_ylim(0, None if reason is None else 1.25 * heights.max())
        logit_ticks(axes, low, high)
        axes.set_xlabel("u  (log-odds scale; 0: repeats the site before)")
        axes.set_ylabel("share per unit of log-odds")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)
    return figure, axes


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
                if longest <= TICKS and len(labels[t]) <= 3:
                    dark = site.action in ("keep", "recur")
                    axes.text(
                        t, row, labels[t], ha="center", va="center", fontsize="small",
                        color="white" if dark else INK,
                    )  # fmt: skip
        axes.set_xlim(-0.6, longest - 0.4)
        axes.set_ylim(len(plan.stages) - 0.5, -0.5)
        axes.set_yticks(range(len(plan.stages)), [short(stage.name, 20) for stage in plan.stages])
        axes.set_xticks(range(0, longest, -(-longest // TICKS)))
        axes.set_xlabel("site of the stage, along depth")
        axes.spines[:].set_visible(False)
        used = [action for action in ACTIONS if action in plan.actions.values()]
        axes.legend(
            [Patch(color=ACTIONS[action]) for action in used], used,
            loc="center left", bbox_to_anchor=(1.0, 0.5),
        )  # fmt: skip
    return figure, axes


def save_figures(analysis: Analysis, directory: str | Path) -> list[Path]:
    """Write every figure as PNG and return the paths.

    `adjacent.png`, and for each stage `kl-<stage>.png`, `weights-<stage>.png` and
    `beta-<stage>.png`.

    Raises:
        OutputError: the folder can't be written to.
    """
    directory = output_directory(directory)
    paths = []
    for name, figure in all_figures(analysis):
        path = directory / f"{name}.png"
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})
        paths.append(path)
    return paths


def all_figures(analysis: Analysis) -> Iterator[tuple[str, Figure]]:
    """Every figure of an analysis, one at a time, with its file name without `.png`."""
    yield "adjacent", adjacent_divergence(analysis)[0]
    taken: set[str] = set()
    for index, part in enumerate(analysis.stages):
        safe = re.sub(r"[^\w.-]+", "_", part.stage.name) or "stage"
        safe = f"{safe}-{index}" if safe in taken else safe
        taken.add(safe)
        yield f"kl-{safe}", divergence_heatmap(part)[0]
        yield f"weights-{safe}", weights_heatmap(part)[0]
        yield f"beta-{safe}", beta_histogram(part)[0]


def _sample(part: StageAnalysis) -> str:
    plural = "s" if part.samples != 1 else ""
    return f"{part.stage.kind} weights, {part.samples:,} sample{plural}"


def _clip_bars(axes: Axes, x: NDArray[np.int64], kl: Floats, error: Floats) -> float:
    """Limit the axis if one or two bars are far higher than the others; label these bars."""
    heights = kl[x]
    if not x.size:
        return 0.0
    usual = max(0.5, float(np.quantile(heights, 0.8, method="lower")))
    top = float(np.max(heights + np.where(np.isfinite(error[x]), 2 * error[x], 0.0)))
    cut = 5 * usual < top
    limit = 2.5 * usual if cut else max(top * 1.08, 1.2 * NEAR)
    axes.set_ylim(0, limit)
    for position, height in zip(x, heights, strict=True):
        if height > limit:
            axes.annotate(
                f"▲ {readable(height, digits=2)}", (position, limit), xytext=(0, 2), ha="center",
                textcoords="offset points", fontsize="x-small", color=INK, annotation_clip=False,
            )  # fmt: skip
    return limit


def _stage_axis(axes: Axes, analysis: Analysis) -> None:
    """Label the sites, and mark each stage by a line and its name."""
    count = sum(len(part.stage.sites) for part in analysis.stages)
    start, name_end, ticks = 0, -1.0, list[tuple[int, str]]()
    for index, part in enumerate(analysis.stages):
        labels = short_labels([site.name for site in part.stage.sites])
        ticks += [(start + t, label) for t, label in enumerate(labels)]
        if index:
            axes.axvline(start - 0.5, color="#bbbbbb", linewidth=1, zorder=0)
        name = short(part.stage.name, 20)
        if start >= name_end:  # a name that would overlap the one before is left out
            axes.text(
                start - 0.4, -0.1, name, transform=axes.get_xaxis_transform(), va="top",
                fontsize="small", color=MUTED,
            )  # fmt: skip
            name_end = start + (len(name) + 2) * max(min(count, 36) / 70, count / 150)
        start += len(labels)
    drawn = ticks[:: -(-len(ticks) // 30)]
    axes.set_xticks([x for x, _ in drawn], [text for _, text in drawn])
    if sum(len(text) + 1 for _, text in drawn) > 70:
        axes.tick_params("x", rotation=90)

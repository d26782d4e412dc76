"""Figures of a stage's adjacent u = 1 − exp(−kl): its histogram, and how well the Beta fit fits.

The axes are log-odds, log(u / (1 − u)), labelled by u. On them the density of any Beta distribution
is bounded, even if its density over u has poles at 0 or 1.
"""

from __future__ import annotations

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import special

from ela_probe.analysis.findings import NEAR, no_fit_reason
from ela_probe.analysis.result import StageAnalysis
from ela_probe.report.figure_style import (
    FIT,
    MUTED,
    SHAPE,
    drawing,
    empty,
    legend_below,
    sample_note,
    title,
)
from ela_probe.report.log_odds import (
    at_the_ends,
    bin_step,
    log_odds_density,
    log_odds_quantiles,
    logit_ticks,
    rebin,
    view,
)
from ela_probe.system.numbers import readable

# u of the divergence below which a retrieval nearly repeats the one before it, in log-odds.
NEAR_LOGIT = float(special.logit(-np.expm1(-NEAR)))
POINTS_OF_QQ = 99


def beta_histogram(part: StageAnalysis, *, ax: Axes | None = None) -> tuple[Figure, Axes]:
    """Histogram of a stage's adjacent u = 1 − exp(−kl) with the fitted Beta density.

    Heights are shares per unit of log-odds; the bars have area 1 together with the shares at u = 0
    (a retrieval that repeats the one before it to the last digit) and u = 1 (saturated). They stand
    in the note below the title: as bars they would be spikes that flatten the rest. Half a percent
    at each side may lie outside. Without a fit it draws no curve and says why. The dashed line is
    the u of 0.05 nats.
    """
    with drawing(ax, (6.0, 5.0)) as (figure, axes):
        title(axes, "u of neighbours, 1 − exp(−kl)", _note(part), of=part.stage.name)
        reason = no_fit_reason(part)
        histogram, n = part.pooled.histogram, part.pooled.n
        if not n:
            empty(axes, f"no fit: {reason}")
            return figure, axes
        low, high = view(histogram)
        inner = histogram.copy()
        inner[[0, -1]] = 0
        if inner.sum():
            edges, heights = rebin(inner, step=bin_step(high - low, n))
            heights *= inner.sum() / histogram.sum()
            axes.stairs(heights, edges, fill=True, color=SHAPE, alpha=0.55, label="observed")
        if part.fit is not None:
            x = np.linspace(low, high, 400)
            name = f"Beta({readable(part.fit.alpha)}, {readable(part.fit.beta)})"
            axes.plot(
                x, log_odds_density(part.fit, x), color=FIT, linewidth=2,
                label=f"{name}   KS {part.fit.ks:.2f}   n {n:,}",
            )  # fmt: skip
        else:
            text = textwrap.fill(f"no fit: {reason}", 45)
            axes.text(0.02, 0.98, text, transform=axes.transAxes, va="top", color=MUTED)
        axes.set_xlim(low, high)
        top = axes.dataLim.y1 if np.isfinite(axes.dataLim.y1) else 1.0
        axes.set_ylim(0, (1.25 if reason else 1.05) * top)
        _near_line(axes, low, high)
        logit_ticks(axes, low, high)
        axes.set_xlabel("u  (log-odds scale; 0: repeats the site before)")
        axes.set_ylabel("share per unit of log-odds")
        legend_below(axes)
    return figure, axes


def beta_quantiles(part: StageAnalysis, *, ax: Axes | None = None) -> tuple[Figure, Axes]:
    """Quantile-quantile plot of a stage's adjacent u against its Beta fit.

    Points on the diagonal fit. The band holds 95 % of the points of samples of this size that are
    truly drawn from the fit, each quantile for itself.
    """
    with drawing(ax, (5.4, 5.0)) as (figure, axes):
        title(axes, "u against its Beta fit", _note(part), of=part.stage.name)
        fit, n = part.fit, part.pooled.n
        if fit is None:
            empty(axes, f"no fit: {no_fit_reason(part)}")
            return figure, axes
        count = min(POINTS_OF_QQ, n)
        shares = (np.arange(count) + 0.5) / count
        expected, band = (
            special.logit(np.clip(special.betaincinv(fit.alpha, fit.beta, p), 1e-15, 1 - 1e-15))
            for p in (
                shares,
                special.betaincinv(
                    n * shares + 0.5, n * (1 - shares) + 0.5, np.array([[0.025], [0.975]])
                ),
            )
        )
        observed = log_odds_quantiles(part.pooled.histogram, shares)
        inside = np.abs(observed) < 34.9  # else it lies in an outer bin: u is 0 or 1
        seen = np.concatenate([expected, observed[inside]])
        low, high = float(seen.min()) - 0.5, float(seen.max()) + 0.5
        axes.fill_between(
            expected, *band, color=FIT, alpha=0.18, linewidth=0, label="of 95 % of samples"
        )
        axes.plot([low, high], [low, high], color=FIT, linewidth=1, label="equal")
        axes.plot(
            expected[inside], observed[inside], "o", color=SHAPE, markersize=3.5,
            label="quantiles of the sample",
        )  # fmt: skip
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        axes.set_aspect("equal")
        for axis in ("x", "y"):
            logit_ticks(axes, low, high, axis=axis)
        axes.tick_params("x", rotation=45)
        axes.set_xlabel(f"u by Beta({readable(fit.alpha)}, {readable(fit.beta)})")
        axes.set_ylabel("u observed")
        axes.legend(loc="lower right", fontsize="small")
    return figure, axes


def _note(part: StageAnalysis) -> str:
    """The sample, and the shares of it that lie at u = 0 and u = 1, which are not drawn."""
    ends = zip(at_the_ends(part.pooled.histogram), ("0", "1"), strict=True) if part.pooled.n else ()
    shares = [f"{readable(100 * share, digits=2)} % have u = {at}" for share, at in ends if share]
    return "; ".join([sample_note(part), *shares])


def _near_line(axes: Axes, low: float, high: float) -> None:
    """A dashed line at the u of 0.05 nats, if that is in view."""
    if not low < NEAR_LOGIT < high:
        return
    axes.axvline(NEAR_LOGIT, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    axes.annotate(
        f"{NEAR} nats", (NEAR_LOGIT, 1), xycoords=("data", "axes fraction"), xytext=(3, -3),
        textcoords="offset points", va="top", rotation=90, color=MUTED, fontsize="small",
    )  # fmt: skip

"""Histograms and Beta densities of u over its log-odds, log(u / (1 − u)).

On this scale the density of every Beta distribution is bounded, and the bins of `beta_fit` are
equally wide.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from scipy import special

from ela_probe.analysis.beta_fit import BINS, LOGIT_EDGES, BetaFit
from ela_probe.system.arrays import Counts, Floats
from ela_probe.system.numbers import readable


def rebin(histogram: Counts, *, step: int) -> tuple[Floats, Floats]:
    """Join every `step` fine bins of `BetaStatistics.histogram`.

    Returns: edges in log-odds [k + 1], and shares per unit of log-odds [k], whose area is 1.
    """
    starts = np.arange(0, BINS, step)
    edges = LOGIT_EDGES[np.append(starts, BINS)]
    shares = np.add.reduceat(histogram, starts) / histogram.sum()
    return edges, shares / np.diff(edges)


def log_odds_quantiles(histogram: Counts, shares: Floats) -> Floats:
    """The log-odds below which these shares of a sample lie, to a bin's width (0.017)."""
    cumulative = np.concatenate([[0.0], np.cumsum(histogram) / histogram.sum()])
    place = np.searchsorted(cumulative, shares).clip(1, BINS)
    low, high = cumulative[place - 1], cumulative[place]
    within = (shares - low) / np.where(high > low, high - low, 1.0)
    return np.asarray(LOGIT_EDGES[place - 1] + within * (LOGIT_EDGES[1] - LOGIT_EDGES[0]))


def log_odds_density(fit: BetaFit, x: Floats) -> Floats:
    """The density of log(u / (1 − u)) at x for u ~ Beta(α, β). It is bounded, without poles."""
    logs = fit.alpha * special.log_expit(x) + fit.beta * special.log_expit(-x)
    return np.asarray(np.exp(logs - special.betaln(fit.alpha, fit.beta)))


def at_the_ends(histogram: Counts) -> tuple[float, float]:
    """The shares of a sample in the outer two bins: u = 0, and u = 1 to the last digit."""
    return float(histogram[0] / histogram.sum()), float(histogram[-1] / histogram.sum())


def view(histogram: Counts) -> tuple[float, float]:
    """The range of log-odds that holds the sample without its outer bins (`at_the_ends`).

    Half a percent at each end may lie outside.
    """
    inner = histogram.copy()
    inner[[0, -1]] = 0
    if not inner.sum():
        return -3.0, 3.0
    cumulative = np.cumsum(inner) / inner.sum()
    low = LOGIT_EDGES[int(np.searchsorted(cumulative, 0.005))]
    high = LOGIT_EDGES[int(np.searchsorted(cumulative, 0.995)) + 1]
    margin = max(0.05 * (high - low), 0.5)
    return float(low - margin), float(high + margin)


def bin_step(span: float, n: int) -> int:
    """How many fine bins to join for about 40 bars, or fewer if the sample is small."""
    bars = min(40.0, max(6.0, 3 * float(np.cbrt(n))))
    width = float(LOGIT_EDGES[1] - LOGIT_EDGES[0])
    return max(1, round(span / width / bars))


def logit_ticks(axes: Axes, low: float, high: float, *, axis: str = "x") -> None:
    """Label log-odds along an axis by their u: 0.001, 0.01, 0.1, 0.5, 0.9, ..."""
    small = [10.0**-k for k in range(15, 0, -1)]
    ticks = [(special.logit(u), readable(u, digits=1)) for u in [*small, 0.5]]
    for u in small:
        text = f"1−{readable(u, digits=1)}" if u < 1e-3 else f"{1 - u:g}"
        ticks.append((-special.logit(u), text))
    if high - low < 5:
        ticks += [(special.logit(u), f"{u:g}") for u in (0.02, 0.05, 0.2, 0.3, 0.7, 0.8, 0.95)]
    drawn = sorted((x, text) for x, text in ticks if low <= x <= high)
    drawn = drawn[:: -(-len(drawn) // 9) or 1]
    if len(drawn) < 3:
        drawn = [(x, readable(special.expit(x))) for x in np.linspace(low, high, 7)[1:-1]]
    places, labels = [x for x, _ in drawn], [text for _, text in drawn]
    if axis == "x":
        axes.set_xticks(places, labels)
        axes.tick_params(bottom=True)
    else:
        axes.set_yticks(places, labels)
        axes.tick_params(left=True)

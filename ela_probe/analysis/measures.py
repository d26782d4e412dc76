"""Measures beside the divergences: how many retrievals are distinct, what is new, how sure it is.

All of them come from what an analysis stores. None needs a second pass over the data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy import special, stats

from ela_probe.analysis.beta_fit import BINS, LOGIT_EDGES, BetaStatistics
from ela_probe.errors import OptionError
from ela_probe.system.arrays import Floats

if TYPE_CHECKING:
    from ela_probe.analysis.result import StageAnalysis
    from ela_probe.sites import Action

# Between two sites: of distributions (each a mean over samples, in nats), and of the mixed values
# of `signed` weights (relative to their norms; see `MixingMetric`).
MEASURES = ("kl", "shape", "mass", "js")
DISTANCES = ("l2", "cosine")

Kernel = Literal["exponential", "linear"]

# What a value in the middle of a histogram's bin adds to the sums of a fit: log u, log(1−u), u, u².
_LOGITS = (LOGIT_EDGES[1:] + LOGIT_EDGES[:-1]) / 2
_TERMS = np.stack(
    [
        special.log_expit(_LOGITS),
        special.log_expit(-_LOGITS),
        special.expit(_LOGITS),
        special.expit(_LOGITS) ** 2,
    ]
)
_TERMS[0, 0] = 0.0  # the first bin holds the zeros, which the sum of log u leaves out


def vendi_score(part: StageAnalysis, *, kernel: Kernel = "exponential") -> float:
    """The effective number of distinct retrievals of a stage, from 1 to T (the Vendi score).

    The exponential of the entropy of the eigenvalues of K / T, where K compares every two sites by
    their mean Jensen-Shannon divergence in nats (Friedman & Dieng, TMLR 2023, equation 1).

    Args:
        kernel: `exponential`: K = exp(−JS). As JS ≤ log 2, T disjoint retrievals are still half
            alike: eigenvalues 1/(2T), T − 1 times, and (T+1)/(2T), so a score of about 2√T.
            `linear`: K = 1 − JS / log 2, also positive definite (Martins et al., JMLR 2009,
            proposition 17 for q = 1). T disjoint retrievals have the score T.

    Raises:
        OptionError: no such kernel.

    NaN for `signed` weights, which have no divergences.
    """
    if "js" not in part.divergences:
        return math.nan
    js = part.divergences["js"] + part.divergences["js"].T
    if kernel == "exponential":
        alike = np.exp(-js)
    elif kernel == "linear":
        alike = 1 - js / math.log(2)
    else:
        raise OptionError(f"got the kernel {kernel!r}; expected 'exponential' or 'linear'")
    eigenvalues = np.linalg.eigvalsh(alike / len(js)).clip(0.0)
    return float(np.exp(special.entr(eigenvalues / eigenvalues.sum()).sum()))


def newest_share(part: StageAnalysis) -> Floats:
    """[T] the share of its mean weights that each site gives to the newest of its sources.

    It is 1 for a site with a single source. NaN for weights over channels, which have no order, and
    for `signed` weights, which are no shares.
    """
    sizes = part.stage.sizes
    if part.stage.kind in ("channel", "signed"):
        return np.full(len(sizes), np.nan)
    rows = part.weights[np.arange(len(sizes)), np.array(sizes) - 1]
    return np.asarray(rows, dtype=np.float64)


def quantile_intervals(
    part: StageAnalysis, *, level: float = 0.95, resamples: int = 200, seed: int = 0
) -> Floats:
    """Bootstrap intervals of the quantiles q_t of a stage, [T, 2]: lower and upper end.

    Every site's u are drawn anew from its stored histogram (bins are 0.017 wide in log-odds), and
    the stage is fitted again. NaN where there is no quantile.

    It assumes that samples are independent, and that sites vary independently of each other,
    although they read the same samples. The heads and tokens of one sample count as one
    observation, so that the intervals are rather too wide than too narrow.

    Args:
        level: the share of resamples inside an interval. resamples: how many are drawn.
        seed: of the random numbers; the same seed gives the same intervals.

    Raises:
        OptionError: a level outside of (0, 1), or fewer than 2 resamples.
    """
    _check_level(level)
    drawn = np.stack([found.quantiles for found in resampled(part, resamples, seed=seed)])
    tails = [(1 - level) / 2, (1 + level) / 2]
    known = np.isfinite(part.quantiles)
    intervals = np.full((len(known), 2), np.nan)
    fitted = np.isfinite(drawn[:, known]).all(axis=1)  # a resample may have no spread left
    if fitted.any():
        intervals[known] = np.quantile(drawn[fitted][:, known], tails, axis=0).T
    return intervals


def damage_intervals(part: StageAnalysis, action: Action, *, level: float = 0.95) -> Floats:
    """Intervals of the damage of an action at every site, [T, 2] in nats: lower and upper end.

    mean ± t · standard error, with Student's t for n − 1 degrees of freedom, from the stored sums.
    It assumes that the n samples are independent and so many that the mean of their damages is
    nearly normal. Damage has a long tail to the right, so with few samples the upper end is too
    low. NaN where the action was not measured, or on a single sample.

    Raises:
        OptionError: a level outside of (0, 1).
    """
    _check_level(level)
    intervals = np.full((len(part.stage.sites), 2), np.nan)
    if part.damage is None or part.damage.samples < 2:
        return intervals
    reach = float(stats.t.ppf((1 + level) / 2, part.damage.samples - 1))
    for t in range(len(intervals)):
        found = part.damage.of(t, action)
        if found is not None:
            intervals[t] = found.mean - reach * found.se, found.mean + reach * found.se
    return intervals


def resampled(part: StageAnalysis, resamples: int, *, seed: int = 0) -> Iterator[StageAnalysis]:
    """The stage with every site's u drawn anew from its histogram; all else stays as it is.

    Raises:
        OptionError: fewer than 2 resamples.
    """
    if resamples < 2:
        raise OptionError(f"got {resamples} resamples; expected at least 2")
    generator = np.random.default_rng(seed)
    return (
        replace(part, beta=tuple(_drawn(b, part, generator) for b in part.beta))
        for _ in range(resamples)
    )


def _drawn(
    beta: BetaStatistics, part: StageAnalysis, generator: np.random.Generator
) -> BetaStatistics:
    """A site's statistics of a sample of the same size, drawn from its histogram."""
    if not beta.n:
        return beta
    occupied = np.flatnonzero(beta.histogram)
    shares = beta.histogram[occupied] / beta.histogram.sum()
    rows_per_sample = max(1.0, part.rows / part.samples)
    draws = max(1, round(beta.n / rows_per_sample))
    counts = generator.multinomial(draws, shares) * (beta.n / draws)
    histogram = np.zeros(BINS)
    histogram[occupied] = counts
    # What the middles of the bins miss of the exact sums, so that resamples lie around these.
    exact = np.array([beta.log_u, beta.log_1mu, beta.u, beta.uu])
    binned = _TERMS @ histogram
    missed = exact - _TERMS @ beta.histogram
    log_u, log_1mu, u, uu = (float(x) for x in binned + missed)
    return BetaStatistics(beta.n, float(histogram[0]), log_u, log_1mu, u, uu, histogram)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise OptionError(f"got the level {level}; expected a share between 0 and 1, such as 0.95")

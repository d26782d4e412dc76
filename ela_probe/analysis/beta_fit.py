"""Maximum-likelihood Beta fits from streamed sums (design: section 4.2).

The sufficient statistics of a Beta sample are n, Σ log u and Σ log(1−u), so a stream is fitted
without being stored. A histogram over fixed bins is kept for the Kolmogorov-Smirnov distance and
for means of functions of u.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from ela_probe.system.arrays import Counts, Floats

# Bins of equal width in logit(u) resolve both ends of (0, 1). The outer two also count all values
# beyond them.
LOGIT_LIMIT, BINS = 35.0, 4096
BIN_WIDTH = 2 * LOGIT_LIMIT / BINS
LOGIT_EDGES = np.linspace(-LOGIT_LIMIT, LOGIT_LIMIT, BINS + 1)
EDGES = special.expit(LOGIT_EDGES)
EDGES[0], EDGES[-1] = 0.0, 1.0

# A u at or below this is rounding error. It counts as 0 and is squeezed into the interval.
ZERO = 2.0**-50


@dataclass(frozen=True)
class BetaStatistics:
    """The counts, sums and histogram of a sample of u in [0, 1) that a fit needs.

    n: sample size; zeros: how many u are 0 (they are left out of log_u); log_u: Σ log u;
    log_1mu: Σ log(1−u); u, uu: Σ u, Σ u²; histogram: [BINS] counts over EDGES. Counts that are
    averaged over epochs need not be integers.
    """

    n: int
    zeros: float
    log_u: float
    log_1mu: float
    u: float
    uu: float
    histogram: Counts

    def __add__(self, other: "BetaStatistics") -> "BetaStatistics":
        return BetaStatistics(
            self.n + other.n,
            self.zeros + other.zeros,
            self.log_u + other.log_u,
            self.log_1mu + other.log_1mu,
            self.u + other.u,
            self.uu + other.uu,
            self.histogram + other.histogram,
        )

    @classmethod
    def of(cls, u: Floats) -> "BetaStatistics":
        """The statistics of a sample held in memory, [n] with 0 <= u < 1."""
        u = np.asarray(u, dtype=np.float64)
        zero = u <= ZERO
        log_u, log_1mu = np.log(np.where(zero, 1.0, u)), np.log1p(-u)
        logits = np.where(zero, -LOGIT_LIMIT, log_u - log_1mu)
        bins = np.floor((logits + LOGIT_LIMIT) / BIN_WIDTH).astype(np.int64)
        return cls(
            n=u.size,
            zeros=int(zero.sum()),
            log_u=float(log_u.sum()),
            log_1mu=float(log_1mu.sum()),
            u=float(u.sum()),
            uu=float((u * u).sum()),
            histogram=np.bincount(np.clip(bins, 0, BINS - 1), minlength=BINS),
        )


@dataclass(frozen=True)
class BetaFit:
    """A fitted Beta(alpha, beta); log_likelihood in nats; ks: Kolmogorov-Smirnov distance."""

    n: int
    alpha: float
    beta: float
    log_likelihood: float
    ks: float
    method: str

    @property
    def mean(self) -> float:
        """The mean of the fitted distribution, α / (α + β)."""
        return self.alpha / (self.alpha + self.beta)

    def cdf(self, u: Floats) -> Floats:
        """The distribution function at u, of the shape of u."""
        return np.asarray(stats.beta.cdf(u, self.alpha, self.beta))

    def pdf(self, u: Floats) -> Floats:
        """The density at u, of the shape of u."""
        return np.asarray(stats.beta.pdf(u, self.alpha, self.beta))


def fit_beta(sample: BetaStatistics) -> BetaFit | None:
    """Fit Beta(α, β) by maximum likelihood; None for a sample too small or without spread.

    Newton's method on ψ(α) − ψ(α+β) = mean log u and ψ(β) − ψ(α+β) = mean log(1−u), from the
    moment estimate. Zeros are squeezed to ½/n first. Where Newton's method does not converge, the
    moment estimate stands and `method` says "moments".

    Returns: None for sums that no sample has, when there are fewer than 2 values, or no spread: a
        standard deviation in log-odds, σ / (m (1 − m)) with m and σ those of u, of at most the
        width of one bin of the histogram (0.017, that is 1.7 % of u where u is small). A
        distribution as narrow lies in a bin or two. Its parameters are of the order of 10⁴ and
        more, and neither a Kolmogorov-Smirnov distance nor a quantile can be read from the
        histogram.
    """
    n = sample.n
    if n < 2:
        return None
    squeezed = 0.5 / n
    mean = (sample.u + sample.zeros * squeezed) / n
    variance = (sample.uu + sample.zeros * squeezed**2) / n - mean**2
    if not 0 < mean < 1 or variance <= (BIN_WIDTH * mean * (1 - mean)) ** 2:
        return None
    log_u = (sample.log_u + sample.zeros * math.log(squeezed)) / n
    log_1mu = (sample.log_1mu + sample.zeros * math.log1p(-squeezed)) / n

    strength = max(mean * (1 - mean) / variance - 1, 1e-3)
    start = np.array([mean * strength, (1 - mean) * strength])
    if not (np.isfinite(start).all() and start.min() > 0):
        return None  # of sums that no sample has
    solution = _newton(start, np.array([log_u, log_1mu]))
    alpha, beta = (float(value) for value in (start if solution is None else solution))
    likelihood = n * ((alpha - 1) * log_u + (beta - 1) * log_1mu - special.betaln(alpha, beta))
    ks = _ks(sample.histogram, alpha, beta)
    if not (math.isfinite(likelihood) and math.isfinite(ks)):
        return None
    method = "moments" if solution is None else "mle"
    return BetaFit(n, alpha, beta, float(likelihood), ks, method)


def mean_quantile(fit: BetaFit, histogram: Counts) -> Floats:
    """Mean of the fitted CDF over a binned sample (design: the quantile of a site).

    Args:
        histogram: [..., BINS] counts of one sample or of several.

    Returns: [...]; NaN for an empty sample.
    """
    cdf = fit.cdf(EDGES)
    total = histogram.sum(axis=-1)
    return np.asarray(histogram @ ((cdf[1:] + cdf[:-1]) / 2) / np.where(total > 0, total, np.nan))


def _newton(start: Floats, target: Floats) -> Floats | None:
    """Solve the likelihood equations in log(α), log(β), which keeps both positive."""
    logs = np.log(start)
    for _ in range(100):
        a, b = np.exp(logs)
        residual = special.digamma([a, b]) - special.digamma(a + b) - target
        if np.abs(residual).max() < 1e-13 * max(1.0, np.abs(target).max()):
            break
        shared = special.polygamma(1, a + b)
        jacobian = np.array(
            [
                [(special.polygamma(1, a) - shared) * a, -shared * b],
                [-shared * a, (special.polygamma(1, b) - shared) * b],
            ]
        )
        try:
            step = np.linalg.solve(jacobian, residual)
        except np.linalg.LinAlgError:
            return None
        logs = logs - np.clip(step, -1.0, 1.0)
        if not np.isfinite(logs).all() or np.abs(logs).max() > 60:
            return None
        if np.abs(step).max() < 1e-14:
            break
    a, b = np.exp(logs)
    residual = special.digamma([a, b]) - special.digamma(a + b) - target
    return np.exp(logs) if np.abs(residual).max() < 1e-8 * max(1.0, np.abs(target).max()) else None


def _ks(histogram: Counts, alpha: float, beta: float) -> float:
    empirical = np.cumsum(histogram) / histogram.sum()
    return float(np.abs(empirical - stats.beta.cdf(EDGES[1:], alpha, beta)).max())

"""Quantile mapping: from a site's quantile in its stage to a skip score (our reading of EBQM)."""

import numpy as np
from pydantic import Field
from scipy import stats

from ela_probe.system.arrays import Floats
from ela_probe.system.validation import Finite, Strict


class Target(Strict):
    """The target distribution Beta(ρκ, (1−ρ)κ) of skip scores.

    skip: its mean ρ, the share of retrievals to skip. concentration: κ; the larger, the closer
    the scores are to ρ.
    """

    skip: Finite = Field(0.3, gt=0, lt=1)
    concentration: Finite = Field(4.0, gt=0)


def skip_scores(quantiles: Floats, target: Target) -> Floats:
    """s_t = G⁻¹(1 − q_t): the least divergent site of a stage has the highest score.

    Args:
        quantiles: [sites] in [0, 1]; NaN (no fit) stays NaN.

    Returns: [sites] in [0, 1].
    """
    alpha = target.skip * target.concentration
    beta = (1 - target.skip) * target.concentration
    return np.asarray(stats.beta.ppf(1 - np.asarray(quantiles), alpha, beta))

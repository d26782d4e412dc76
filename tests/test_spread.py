"""Values of u without spread get no Beta fit: what a histogram can't resolve has no parameters."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ela_probe.analysis.beta_fit import BIN_WIDTH, BetaStatistics, fit_beta
from ela_probe.analysis.findings import no_fit_reason
from ela_probe.analysis.metric import RedundancyMetric
from ela_probe.analysis.result import StageAnalysis
from ela_probe.sites import Site, Stage


def narrow(mean: float, spread: float, n: int, seed: int) -> np.ndarray:
    """u with a standard deviation of `spread` in log-odds around a mean."""
    logits = np.log(mean / (1 - mean)) + spread * np.random.default_rng(seed).standard_normal(n)
    return 1 / (1 + np.exp(-logits))


@given(st.floats(0.001, 0.95), st.integers(0, 2**31))
def test_a_fit_begins_where_the_spread_exceeds_a_bin(mean: float, seed: int) -> None:
    below = BetaStatistics.of(narrow(mean, 0.8 * BIN_WIDTH, 500, seed))
    above = BetaStatistics.of(narrow(mean, 1.3 * BIN_WIDTH, 500, seed))
    assert fit_beta(below) is None
    assert fit_beta(above) is not None


@given(st.floats(0.01, 0.9), st.integers(0, 2**31))
def test_a_fit_that_is_given_is_of_more_than_one_bin(mean: float, seed: int) -> None:
    fit = fit_beta(BetaStatistics.of(narrow(mean, 2 * BIN_WIDTH, 500, seed)))
    assert fit is not None
    low, high = (stats.beta.ppf(q, fit.alpha, fit.beta) for q in (0.05, 0.95))
    assert np.log(high / (1 - high)) - np.log(low / (1 - low)) > BIN_WIDTH


def two_sites(noise: float) -> StageAnalysis:
    """A stage of two sites; the second gives the new source 0.3 of its weight, almost always."""
    stage = Stage("s", "softmax", (Site("s.0", "s.0", 1), Site("s.1", "s.1", 2)))
    metric = RedundancyMetric(stage.sizes)
    generator = torch.Generator().manual_seed(0)
    new = 0.3 + noise * torch.randn(400, 1, generator=generator, dtype=torch.float64)
    metric.update([torch.ones(400, 1, dtype=torch.float64), torch.cat([1 - new, new], dim=1)])
    return StageAnalysis.from_metric(stage, metric.compute())


@pytest.mark.parametrize("noise", [0.0, 1e-5, 1e-3])
def test_two_sites_whose_divergences_are_nearly_equal_have_no_fit(noise: float) -> None:
    """Each u is the weight of the new source: its odds vary by noise / (0.3 · 0.7)."""
    part = two_sites(noise)
    assert part.fit is None
    assert part.site_fits == (None, None)
    assert np.isnan(part.quantiles).all()
    assert "no spread" in (no_fit_reason(part) or "")


def test_two_sites_with_spread_have_a_fit() -> None:
    part = two_sites(0.02)
    assert part.fit is not None
    assert part.fit.mean == pytest.approx(0.3, abs=0.01)
    assert no_fit_reason(part) is None

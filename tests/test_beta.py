"""The streamed fit against scipy, and its honesty about samples that allow none."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ela_probe.analysis.beta_fit import EDGES, BetaStatistics, fit_beta, mean_quantile
from ela_probe.analysis.ebqm import Target, skip_scores

shapes = st.floats(0.3, 30)


def sample(alpha: float, beta: float, n: int, seed: int) -> np.ndarray:
    return np.clip(np.random.default_rng(seed).beta(alpha, beta, n), 1e-12, 1 - 1e-12)


@given(shapes, shapes, st.integers(20, 400), st.integers(0, 2**31))
def test_the_streamed_fit_equals_scipy(alpha: float, beta: float, n: int, seed: int) -> None:
    u = sample(alpha, beta, n, seed)
    half = n // 3
    fit = fit_beta(BetaStatistics.of(u[:half]) + BetaStatistics.of(u[half:]))
    assert fit is not None
    assert fit.method == "mle"
    expected = stats.beta.fit(u, floc=0, fscale=1)[:2]
    np.testing.assert_allclose([fit.alpha, fit.beta], expected, rtol=1e-6)
    assert fit.log_likelihood == pytest.approx(
        stats.beta.logpdf(u, *expected).sum(), rel=1e-6, abs=1e-6
    )


@given(shapes, shapes, st.integers(0, 2**31))
def test_ks_and_quantile_are_those_of_the_sample(alpha: float, beta: float, seed: int) -> None:
    u = sample(alpha, beta, 500, seed)
    fit = fit_beta(BetaStatistics.of(u))
    assert fit is not None
    expected = stats.kstest(u, stats.beta(fit.alpha, fit.beta).cdf).statistic
    assert fit.ks == pytest.approx(expected, abs=0.02)
    quantile = mean_quantile(fit, BetaStatistics.of(u).histogram)
    assert quantile == pytest.approx(fit.cdf(u).mean(), abs=1e-3)


def test_zeros_are_squeezed_to_half_a_sample() -> None:
    u = np.array([0.0, 0.2, 0.4, 0.3, 0.0, 0.25])
    fit = fit_beta(BetaStatistics.of(u))
    assert fit is not None
    squeezed = np.where(u == 0, 0.5 / len(u), u)
    expected = stats.beta.fit(squeezed, floc=0, fscale=1)[:2]
    np.testing.assert_allclose([fit.alpha, fit.beta], expected, rtol=1e-6)


@pytest.mark.parametrize("u", [[], [0.3], [0.3] * 50, [0.0] * 50, [0.9999] * 3])
def test_a_degenerate_sample_yields_no_fit(u: list[float]) -> None:
    assert fit_beta(BetaStatistics.of(np.array(u))) is None


def test_the_bins_cover_the_unit_interval_in_order() -> None:
    assert EDGES[0] == 0
    assert EDGES[-1] == 1
    assert (np.diff(EDGES) >= 0).all()
    assert (np.diff(EDGES)[: len(EDGES) // 2] > 0).all()


@given(st.lists(st.floats(0.01, 0.99), min_size=2, max_size=9), st.floats(0.1, 0.9))
def test_less_divergent_sites_score_higher(quantiles: list[float], skip: float) -> None:
    scores = skip_scores(np.array(quantiles), Target(skip=skip))
    assert ((scores >= 0) & (scores <= 1)).all()
    order = np.argsort(quantiles)
    assert (np.diff(scores[order]) <= 1e-12).all()


@given(st.floats(0.05, 0.95), st.floats(1, 20))
def test_scores_of_uniform_quantiles_have_the_target_mean(skip: float, kappa: float) -> None:
    quantiles = (np.arange(2000) + 0.5) / 2000
    scores = skip_scores(quantiles, Target(skip=skip, concentration=kappa))
    assert scores.mean() == pytest.approx(skip, abs=2e-3)


def test_no_quantile_gives_no_score() -> None:
    assert np.isnan(skip_scores(np.array([np.nan, 0.5]), Target())).tolist() == [True, False]

"""Measures beside the divergences: closed-form answers, bounds, and what resampling must give."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from scipy import stats
from torch import Tensor

from ela_probe.analysis.beta_fit import BetaStatistics
from ela_probe.analysis.damage import MEASURED, StageDamage
from ela_probe.analysis.measures import (
    Kernel,
    damage_intervals,
    newest_share,
    quantile_intervals,
    resampled,
    vendi_score,
)
from ela_probe.analysis.metric import RedundancyMetric
from ela_probe.analysis.result import Analysis, StageAnalysis
from ela_probe.errors import OptionError
from ela_probe.sites import Site, Stage
from tests.support.strategies import retrievals
from tests.support.synthetic_analyses import make_analysis


def stage_of(rows: list[Tensor]) -> StageAnalysis:
    """The analysis of a stage with these retrievals, [samples, ..., sources] each."""
    sites = tuple(Site(f"s.{t}", f"s.{t}", w.shape[-1]) for t, w in enumerate(rows))
    metric = RedundancyMetric([w.shape[-1] for w in rows])
    metric.update(rows)
    return StageAnalysis.from_metric(Stage("s", "softmax", sites), metric.compute())


def one_hot(sites: int) -> StageAnalysis:
    """Every site reads one source, which no other site reads."""
    return stage_of([torch.eye(sites)[t].expand(3, sites) for t in range(sites)])


@pytest.mark.parametrize("kernel", ["exponential", "linear"])
@pytest.mark.parametrize("sites", [1, 2, 7])
def test_equal_retrievals_count_as_one(sites: int, kernel: Kernel) -> None:
    row = torch.rand(4, 3, dtype=torch.float64)
    assert vendi_score(stage_of([row] * sites), kernel=kernel) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("sites", [2, 3, 18])
def test_disjoint_retrievals_have_the_closed_form_of_the_kernel(sites: int) -> None:
    part = one_hot(sites)
    values = np.array([1 / (2 * sites)] * (sites - 1) + [(sites + 1) / (2 * sites)])
    assert vendi_score(part) == pytest.approx(np.exp(-(values * np.log(values)).sum()), rel=1e-9)
    assert vendi_score(part, kernel="linear") == pytest.approx(sites, rel=1e-9)


@given(retrievals())
def test_the_vendi_score_lies_between_one_and_the_number_of_sites(rows: list[Tensor]) -> None:
    part = stage_of(rows)
    exponential, linear = vendi_score(part), vendi_score(part, kernel="linear")
    assert 1 - 1e-9 <= exponential <= linear + 1e-9 <= len(rows) + 1e-8


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(OptionError, match="'cosine'; expected 'exponential'"):
        vendi_score(one_hot(2), kernel="cosine")  # type: ignore[arg-type]


@given(retrievals())
def test_entropy_and_newest_share_are_those_of_the_weights(rows: list[Tensor]) -> None:
    part = stage_of(rows)
    for t, weights in enumerate(rows):
        entropies = stats.entropy(weights.numpy(), axis=-1).mean(axis=1)  # over heads
        assert part.entropy[t] == pytest.approx(entropies.mean(), rel=1e-9, abs=1e-14)
        if len(entropies) > 1:
            error = stats.sem(entropies)
            assert part.entropy_se[t] == pytest.approx(error, rel=1e-5, abs=1e-7)
        else:
            assert np.isnan(part.entropy_se[t])
        assert newest_share(part)[t] == pytest.approx(float(weights[..., -1].mean()), rel=1e-9)


def test_equal_weights_have_the_entropy_of_their_number() -> None:
    part = stage_of([torch.full((2, n), 1 / n) for n in (1, 2, 8)])
    np.testing.assert_allclose(part.entropy, np.log([1, 2, 8]), atol=1e-12)
    assert part.entropy[0] == 0


def test_channels_have_no_newest_source() -> None:
    part = make_analysis((3,), kind="channel", samples=4).stages[0]
    assert np.isnan(newest_share(part)).all()


def test_the_table_of_sites_has_them() -> None:
    analysis = make_analysis((4, 3), samples=20)
    expected = np.concatenate([part.entropy for part in analysis.stages])
    np.testing.assert_array_equal(analysis.sites["entropy"], expected)
    assert list(analysis.sites["newest_share"][[0, 4]]) == [1.0, 1.0]


def test_an_analysis_of_an_older_version_has_no_entropy() -> None:
    part = make_analysis((4,), samples=20).stages[0]
    old = {k: v for k, v in part.arrays().items() if not k.startswith("entropy")}
    loaded = StageAnalysis.from_arrays(part.stage, old)
    assert loaded.entropy.shape == loaded.entropy_se.shape == (4,)
    assert np.isnan(loaded.entropy).all()
    assert np.isnan(Analysis((loaded,), make_analysis((2,)).provenance).sites["entropy"]).all()


def test_a_resample_has_the_sizes_of_the_sample_and_its_mean_in_the_mean() -> None:
    part = make_analysis((4,), samples=300).stages[0]
    found = list(resampled(part, 300, seed=1))
    for t in range(1, 4):
        sums = np.array([[p.beta[t].log_u, p.beta[t].log_1mu, p.beta[t].u] for p in found])
        exact = [part.beta[t].log_u, part.beta[t].log_1mu, part.beta[t].u]
        error = sums.std(axis=0) / np.sqrt(len(found))
        assert (np.abs(sums.mean(axis=0) - exact) < 5 * error + 1e-12).all()
        assert all(p.beta[t].n == part.beta[t].n for p in found)
    assert all(p.beta[0].n == 0 for p in found)


def test_quantile_intervals_cover_what_new_data_give() -> None:
    """Intervals from one histogram hold about as many new quantiles as they claim."""
    generator = np.random.default_rng(0)
    shapes = [(1.0, 4.0), (2.0, 4.0), (0.5, 3.0)]

    def stage(n: int) -> StageAnalysis:
        base = make_analysis((4,), samples=n).stages[0]
        own = [BetaStatistics.of(generator.beta(*shape, n)) for shape in shapes]
        return dataclasses.replace(base, beta=(base.beta[0], *own))

    first = stage(400)
    intervals = quantile_intervals(first, level=0.95, resamples=200)
    assert np.isnan(intervals[0]).all()
    assert (intervals[1:, 0] < first.quantiles[1:]).all()
    assert (intervals[1:, 1] > first.quantiles[1:]).all()
    spread = np.std([stage(400).quantiles[1:] for _ in range(60)], axis=0)
    widths = (intervals[1:, 1] - intervals[1:, 0]) / (2 * 1.96)
    np.testing.assert_allclose(widths, spread, rtol=0.35)


def test_heads_of_a_sample_count_as_one_observation() -> None:
    row = torch.rand(50, 1, 6, dtype=torch.float64)
    single = [row[..., : t + 1] * (1 + torch.rand(50, 1, t + 1)) for t in range(6)]
    copied = [w.expand(-1, 4, -1) for w in single]
    one, four = (quantile_intervals(stage_of(rows), seed=3) for rows in (single, copied))
    np.testing.assert_allclose(one, four, rtol=0.05, atol=0.01)


def test_the_same_seed_gives_the_same_intervals() -> None:
    part = make_analysis((5,), samples=30).stages[0]
    one, same, other = (quantile_intervals(part, resamples=20, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one[1:], other[1:])


def test_no_fit_has_no_intervals() -> None:
    part = make_analysis((2,), constant=True).stages[0]
    assert np.isnan(quantile_intervals(part, resamples=5)).all()


def test_damage_intervals_are_students() -> None:
    damages = np.random.default_rng(2).exponential(0.1, (3, 40))
    sums = np.full((3, len(MEASURED), 4), np.nan)
    for t, d in enumerate(damages):
        sums[t, 0] = [0.0, 0.0, d.sum(), (d**2).sum()]
    part = make_analysis((3,), samples=40).stages[0]
    part = dataclasses.replace(part, damage=StageDamage(40, sums, np.full(3, np.nan), (None,) * 3))
    found = damage_intervals(part, "skip", level=0.9)
    for t, d in enumerate(damages):
        expected = stats.t.interval(0.9, 39, loc=d.mean(), scale=stats.sem(d))
        np.testing.assert_allclose(found[t], expected, rtol=1e-9)
    assert np.isnan(damage_intervals(part, "affine")).all()


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_a_level_is_a_share(level: float) -> None:
    part = make_analysis((3,), samples=9).stages[0]
    for measure in (quantile_intervals, lambda p, level: damage_intervals(p, "skip", level=level)):
        with pytest.raises(OptionError, match="expected a share between 0 and 1"):
            measure(part, level=level)
    with pytest.raises(OptionError, match="at least 2"):
        quantile_intervals(part, resamples=1)

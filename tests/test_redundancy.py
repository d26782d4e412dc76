"""The streamed metric: exact merging, convexity, bounds on what it accepts."""

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from ela_probe import divergence
from ela_probe.beta import BetaStatistics
from ela_probe.errors import AnalysisError, ProbeError
from ela_probe.redundancy import RedundancyMetric
from tests.strategies import retrievals

STATES = ("samples", "rows", "weight_sums", "pair_sums", "beta_sums", "zeros", "histogram")


def metric_of(batches: list[list[Tensor]]) -> RedundancyMetric:
    metric = RedundancyMetric([w.shape[-1] for w in batches[0]])
    for batch in batches:
        metric.update(batch)
    return metric


def random_batches(count: int, sites: int = 5, seed: int = 0) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        [torch.randn(7, 2, t + 1, generator=generator).softmax(-1) for t in range(sites)]
        for _ in range(count)
    ]


def test_two_half_streams_merged_equal_one_stream_exactly() -> None:
    batches = random_batches(40)
    whole = metric_of(batches).compute()
    halves = metric_of(batches[:17]), metric_of(batches[17:][::-1])  # also in another order
    halves[0].merge_state(halves[1])
    result = halves[0].compute()
    for name, value in whole.items():
        assert torch.equal(value, result[name]), name


@given(retrievals())
def test_means_and_errors_are_those_of_the_samples(rows: list[Tensor]) -> None:
    result = metric_of([rows]).compute()
    samples = rows[0].shape[0]
    weights = divergence.pad([divergence.normalise(w.flatten(0, 1)) for w in rows])
    pairs = divergence.pairwise(weights, [w.shape[-1] for w in rows])
    for name in ("kl", "shape", "mass", "js"):
        by_sample = getattr(pairs, name).unflatten(0, (samples, -1)).mean(1)
        mean = result[name].reshape(by_sample.shape[1:])  # torchmetrics squeezes single values
        torch.testing.assert_close(mean, by_sample.mean(0), rtol=1e-9, atol=1e-15)
        if samples > 1:
            error = by_sample.std(0) / samples**0.5
            se = result[f"{name}_se"].reshape(error.shape)
            torch.testing.assert_close(se, error, rtol=1e-5, atol=1e-7)
    mean = result["weights"].reshape(weights.shape[1:])
    torch.testing.assert_close(mean, weights.mean(0), rtol=1e-9, atol=1e-15)


@given(retrievals())
def test_mean_of_divergences_is_at_least_divergence_of_means(rows: list[Tensor]) -> None:
    result = metric_of([rows]).compute()
    assert (result["kl"] >= result["kl_of_means"] - 1e-12).all()


@given(retrievals())
def test_beta_statistics_are_those_of_the_adjacent_divergences(rows: list[Tensor]) -> None:
    result = metric_of([rows]).compute()
    weights = [divergence.normalise(w.flatten(0, 1)) for w in rows]
    assert result["histogram"][0].sum() == 0
    for t in range(1, len(rows)):
        u = -np.expm1(-divergence.kl(weights[t - 1], weights[t]).numpy())
        expected = BetaStatistics.of(u)
        if expected.zeros == 0:
            np.testing.assert_allclose(
                result["beta_sums"][:, t].numpy(),
                [expected.log_u, expected.log_1mu, expected.u, expected.uu],
                rtol=1e-6,
                atol=1e-9,
            )
        assert result["histogram"][t].sum() == len(u)


def test_the_histogram_bins_are_those_of_numpy() -> None:
    batches = random_batches(5, sites=3)
    rows = torch.cat([b[2].flatten(0, 1) for b in batches])
    before = torch.cat([b[1].flatten(0, 1) for b in batches])
    u = -np.expm1(-divergence.kl(divergence.normalise(before), divergence.normalise(rows)).numpy())
    expected = BetaStatistics.of(u).histogram
    assert np.array_equal(metric_of(batches).compute()["histogram"][2].numpy(), expected)


def test_memory_does_not_depend_on_the_number_of_samples() -> None:
    def size(metric: RedundancyMetric) -> int:
        return sum(getattr(metric, name).numel() for name in STATES)

    assert size(metric_of(random_batches(1))) == size(metric_of(random_batches(30)))


def test_token_axes_belong_to_their_sample() -> None:
    w = torch.randn(3, 2, 5, 2).softmax(-1)
    metric = metric_of([[torch.ones(3, 2, 5, 1), w]])
    result = metric.compute()
    assert result["samples"] == 3
    assert result["rows"] == 30


def test_nothing_recorded_is_an_error() -> None:
    with pytest.raises(AnalysisError, match="no forward pass"):
        RedundancyMetric([1, 2]).compute()


@pytest.mark.parametrize("sizes", [[], [2, 1], [0, 1]])
def test_sizes_must_not_fall(sizes: list[int]) -> None:
    with pytest.raises(ProbeError, match="never falls"):
        RedundancyMetric(sizes)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([torch.ones(2, 1)], "1 retrievals came; expected 2"),
        ([torch.ones(2, 1), torch.ones(2, 3)], r"shape \[2, 3\] came; expected \[2, 2\]"),
        ([torch.ones(2, 1), torch.ones(3, 2)], r"shape \[3, 2\] came"),
        ([torch.ones(2, 1), torch.full((2, 2), float("nan"))], "b: weights are NaN"),
        ([torch.ones(2, 1), torch.full((2, 2), float("inf"))], "infinite"),
        ([torch.ones(2, 1), torch.tensor([[0.5, 0.5], [1.5, -0.5]])], "negative"),
    ],
)
def test_unexpected_weights_are_named(weights: list[Tensor], message: str) -> None:
    metric = RedundancyMetric([1, 2], names=["a", "b"])
    with pytest.raises(ProbeError, match=message):
        metric.update(weights)
    assert metric.samples == 0


def test_one_sample_has_no_standard_error() -> None:
    result = metric_of([[torch.rand(1, 2, t + 1).softmax(-1) for t in range(3)]]).compute()
    assert result["kl_se"].isnan().all()

"""The streamed metric: exact merging, convexity, bounds on what it accepts."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ela_probe.analysis import divergence, packing
from ela_probe.analysis.beta_fit import EDGES, BetaStatistics
from ela_probe.analysis.metric import RedundancyMetric
from ela_probe.errors import AnalysisError, ProbeError
from tests.support.strategies import retrievals

STATES = (
    "samples", "rows", "weight_sums", "pair_sums", "entropy_sums", "beta_sums", "zeros",
    "histogram",
)  # fmt: skip


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


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name].nan_to_num(-1), b[name].nan_to_num(-1)), name


@given(retrievals(), st.integers(1, 5))
def test_a_batch_cut_in_two_is_the_same_to_the_last_bit(rows: list[Tensor], at: int) -> None:
    halves = [part for part in ([w[:at] for w in rows], [w[at:] for w in rows]) if len(part[0])]
    assert_equal(metric_of([rows]).compute(), metric_of(halves).compute())


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = random_batches(2)
    whole = metric_of(batches).compute()
    monkeypatch.setattr(packing, "CPU_CHUNK", 120)
    assert len(list(packing.chunks(batches[0]))) == 4
    assert_equal(whole, metric_of(batches).compute())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@given(rows=retrievals())
def test_half_precision_is_upcast_before_anything_else(
    dtype: torch.dtype, rows: list[Tensor]
) -> None:
    half = [w.to(dtype) for w in rows]
    result = metric_of([half]).compute()
    assert_equal(result, metric_of([[w.double() for w in half]]).compute())
    for name in ("kl", "shape", "mass", "js"):
        assert (result[name] >= 0).all()
    inside = torch.tensor([w.shape[-1] for w in rows])[:, None] > torch.arange(rows[-1].shape[-1])
    mean = result["weights"].reshape(inside.shape)
    torch.testing.assert_close(mean.sum(-1), torch.ones(len(rows), dtype=torch.float64))
    assert not mean[~inside].any()


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
            # A variance as a difference of mean squares is off by 1e-16 of these, its root by 1e-8.
            largest = float(by_sample.abs().max())
            torch.testing.assert_close(se, error, rtol=1e-5, atol=1e-7 * (1 + largest))
    mean = result["weights"].reshape(weights.shape[1:])
    torch.testing.assert_close(mean, weights.mean(0), rtol=1e-9, atol=1e-15)


@given(retrievals())
def test_the_product_of_all_pairs_gives_the_same_means(rows: list[Tensor]) -> None:
    result = metric_of([rows]).compute()["kl"]
    torch.testing.assert_close(
        divergence.mean_kl(rows).reshape(result.shape), result, rtol=1e-9, atol=1e-14
    )


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
                atol=1e-9 + len(u) * 1e-14 / u.min(),  # rounding of kl, seen through the logarithm
            )
        assert result["histogram"][t].sum() == len(u)


def test_the_histogram_bins_are_those_of_numpy() -> None:
    batches = random_batches(5, sites=3)
    rows = torch.cat([b[2].flatten(0, 1) for b in batches])
    before = torch.cat([b[1].flatten(0, 1) for b in batches])
    u = -np.expm1(-divergence.kl(divergence.normalise(before), divergence.normalise(rows)).numpy())
    expected = np.histogram(u, EDGES)[0]
    assert np.array_equal(metric_of(batches).compute()["histogram"][2].numpy(), expected)
    assert np.array_equal(BetaStatistics.of(u).histogram, expected)


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
    with pytest.raises(ProbeError, match="never decrease"):
        RedundancyMetric(sizes)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([torch.ones(2, 1)], "got 1 retrievals; expected 2"),
        ([torch.ones(2, 1), torch.ones(2, 3)], r"shape \[2, 3\]; expected \[2, 2\]"),
        ([torch.ones(2, 1), torch.ones(3, 2)], r"shape \[3, 2\];"),
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


BROKEN = [torch.ones(2, 1), torch.tensor([[0.5, 0.5], [1.5, -0.5]])]
SOUND = [torch.ones(2, 1), torch.full((2, 2), 0.5)]


def test_broken_weights_that_nobody_waited_for_are_found_at_the_next_look() -> None:
    metric = RedundancyMetric([1, 2], names=["a", "b"], check_every=3)
    metric.update(SOUND)
    metric.update(BROKEN)
    with pytest.raises(ProbeError, match="b: weights are NaN"):
        metric.update(SOUND)


def test_broken_weights_never_become_a_result() -> None:
    metric = RedundancyMetric([1, 2], names=["a", "b"], check_every=100)
    metric.update(BROKEN)
    other = RedundancyMetric([1, 2], names=["a", "b"])
    other.update(SOUND)
    other.merge_state(metric)
    for one in (metric, other):
        with pytest.raises(ProbeError, match="b: weights are NaN"):
            one.compute()


class Waiting(TorchDispatchMode):
    """Fails on what makes the host wait for an accelerator, or sends something to it."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "item", "nonzero", "masked_select", "lift_fresh"):
            raise AssertionError(f"{name} waits")
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        if any(index is not None and index.dtype == torch.bool for index in indices):
            raise AssertionError(f"{name} with a mask waits")
        result = func(*args, **(kwargs or {}))
        if name in ("_to_copy", "copy_") and len({t.device for t in (result, args[-1])}) > 1:
            raise AssertionError(f"{name} from one device to another waits")
        return result


@pytest.mark.parametrize("large", [2**16, 0])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_an_update_never_waits_for_an_accelerator(
    device: str, large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "LARGE_SAMPLE", large)
    (batch,) = random_batches(1)
    batch = [w.to(device) for w in batch]  # nothing can be read from meta tensors
    metric = RedundancyMetric([1, 2, 3, 4, 5], check_every=100).to(device)
    with Waiting():
        metric.update(batch)
        metric.update(batch)
        with pytest.raises(AssertionError, match="waits"):
            metric.check()  # which is there to wait


def test_one_sample_has_no_standard_error() -> None:
    result = metric_of([[torch.rand(1, 2, t + 1).softmax(-1) for t in range(3)]]).compute()
    assert result["kl_se"].isnan().all()

"""A sample with many weights is summed by matrix products: the figures are those of its rows."""

import pytest
import torch
from hypothesis import given
from torch import Tensor

from ela_probe.analysis import packing
from ela_probe.analysis.metric import RedundancyMetric
from ela_probe.analysis.packing import parts_of_sample
from ela_probe.errors import ProbeError
from ela_probe.evaluation.peak_memory import peak_bytes
from tests.support.strategies import retrievals

MEANS = ("kl", "mass", "shape", "js", "entropy", "weights", "kl_of_means")


def computed(rows: list[Tensor], *, heads: int = 1, limit: int, **limits: int) -> dict[str, Tensor]:
    """The statistics where a sample with more numbers than `limit` is large."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"LARGE_SAMPLE": limit, **limits}.items():
            patch.setattr(packing, name, value)
        metric = RedundancyMetric([w.shape[-1] for w in rows], heads=heads)
        metric.update(rows)
        return metric.compute()


def assert_close(result: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Equal but for rounding: a sum over rows of terms of order 1 is off by some 1e-15 of a row."""
    assert result.keys() == expected.keys()
    for name in MEANS:
        torch.testing.assert_close(result[name], expected[name], rtol=1e-9, atol=1e-13)
    for name in ("samples", "rows"):
        assert torch.equal(result[name], expected[name])


@given(retrievals())
def test_matrix_products_give_what_rows_give(rows: list[Tensor]) -> None:
    expected = computed(rows, limit=2**60)
    result = computed(rows, limit=0)
    assert_close(result, expected)
    for name in ("kl", "mass", "shape", "js"):
        assert (result[name] >= 0).all()
    assert (result["js"] <= 0.6931471805599454).all()


@pytest.mark.parametrize("heads", [1, 3])
def test_parts_of_a_sample_change_nothing_but_rounding(heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = [1, 1, 2, 4, 4, 5]
    rows = [torch.randn(2, 6, 7, size, generator=generator).softmax(-1) for size in sizes]
    expected = computed(rows, heads=heads, limit=2**60)
    for part in (1, 100, 2**20):
        result = computed(rows, heads=heads, limit=0, CPU_PART=part, CPU_MIXED=part)
        assert_close(result, expected)
        # a zero more or less is rounding too
        torch.testing.assert_close(
            result["beta_sums"], expected["beta_sums"], rtol=1e-9, atol=1e-9, equal_nan=True
        )
        assert torch.equal(result["histogram"], expected["histogram"])
        if heads > 1:
            torch.testing.assert_close(result["head_kl"], expected["head_kl"], rtol=1e-12, atol=0)


def test_parts_hold_every_row_of_every_head_once() -> None:
    sample = [torch.arange(2 * 3 * 5 * size).view(1, 6, 5, size).double() for size in (1, 2)]
    parts = [part[1] for part in parts_of_sample(sample, 2)]
    assert torch.equal(torch.cat(parts, dim=2), sample[1].view(1, 2, 15, 2))


def test_a_large_sample_beside_others_is_the_same_to_the_last_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(5, 9, t + 1, generator=generator).softmax(-1) for t in range(4)]
    together = RedundancyMetric([1, 2, 3, 4])
    apart = RedundancyMetric([1, 2, 3, 4])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "LARGE_SAMPLE", 0)
        together.update(rows)
        for n in (3, 0, 4, 1, 2):
            apart.update([w[n : n + 1].clone() for w in rows])
    for name, value in together.compute().items():
        assert torch.equal(value, apart.compute()[name]), name


def test_the_memory_of_an_update_does_not_grow_with_the_length_of_a_sample() -> None:
    def peak(tokens: int) -> int:
        rows = [torch.rand(1, tokens, 64) for _ in range(16)]
        metric = RedundancyMetric([64] * 16)
        return peak_bytes(lambda: metric.update(rows))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "CPU_PART", 2**16)  # 64 tokens
        # What remains of a token, the kl of its neighbours, is less than its weights once.
        assert peak(1024) - peak(256) < 768 * 16 * 64 * 8


def test_broken_weights_of_a_large_sample_are_named() -> None:
    rows = [torch.ones(1, 4, 1), torch.full((1, 4, 2), 0.5)]
    rows[1][0, 3, 1] = torch.nan
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "LARGE_SAMPLE", 0)
        patch.setattr(packing, "CPU_PART", 1)
        with pytest.raises(ProbeError, match="site 1: weights are NaN"):
            RedundancyMetric([1, 2]).update(rows)


def test_a_sample_with_many_weights_is_large() -> None:
    assert packing.is_large([torch.ones(1, 64, 187)] * 187)
    assert not packing.is_large([torch.ones(500, 4, 18)] * 18)

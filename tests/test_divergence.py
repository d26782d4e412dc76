"""Laws of the divergences."""

import math
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import rel_entr
from torch import Tensor

from ela_probe.analysis import divergence
from ela_probe.analysis.packing import folded, pack
from tests.support.strategies import retrievals


def stacked(rows: list[Tensor]) -> tuple[Tensor, list[int]]:
    weights = [divergence.normalise(w.reshape(-1, w.shape[-1])) for w in rows]
    return divergence.pad(weights), [w.shape[-1] for w in weights]


def loop(weights: Tensor, sizes: list[int]) -> dict[str, np.ndarray]:
    """The definitions, one pair and row at a time."""
    rows, sites, _ = weights.shape
    out = {name: np.zeros((rows, sites, sites)) for name in ("kl", "shape", "mass", "js")}
    w = weights.numpy()
    for n in range(rows):
        for j in range(sites):
            for i in range(j):
                p, q = w[n, i, : sizes[i]], w[n, j, : sizes[j]]
                kept = q[: sizes[i]].sum() if sizes[i] < sizes[j] else 1.0
                padded = np.concatenate([p, np.zeros(sizes[j] - sizes[i])])
                out["mass"][n, i, j] = -math.log(kept)
                out["shape"][n, i, j] = rel_entr(p, q[: sizes[i]] / kept).sum()
                out["kl"][n, i, j] = rel_entr(padded, q).sum()
                middle = (padded + q) / 2
                halves = rel_entr(padded, middle).sum() + rel_entr(q, middle).sum()
                out["js"][n, i, j] = halves / 2
    return out


@given(retrievals())
def test_pairwise_equals_a_float64_loop(rows: list[Tensor]) -> None:
    weights, sizes = stacked(rows)
    result, expected = divergence.pairwise(weights, sizes), loop(weights, sizes)
    # A divergence is a difference of terms of order 1, so 1e-14 of them is rounding.
    for name in ("kl", "shape", "mass", "js"):
        np.testing.assert_allclose(
            getattr(result, name).numpy(), expected[name], rtol=1e-9, atol=1e-14
        )


@given(retrievals(dtype=torch.float32))
def test_pairwise_of_float32_equals_the_loop(rows: list[Tensor]) -> None:
    weights, sizes = stacked(rows)
    exact, _ = stacked([w.double() for w in rows])
    expected = loop(exact, sizes)
    for name in ("kl", "shape", "mass"):
        np.testing.assert_allclose(
            getattr(divergence.pairwise(weights, sizes), name).numpy(),
            expected[name],
            rtol=1e-5,
            atol=1e-7,
        )


@given(retrievals())
def test_kl_is_shape_plus_mass_and_none_is_negative(rows: list[Tensor]) -> None:
    result = divergence.pairwise(*stacked(rows))
    torch.testing.assert_close(result.kl, result.shape + result.mass, rtol=1e-14, atol=1e-15)
    for part in result:
        assert (part >= 0).all()
        assert not part.tril().any()
    assert (result.js <= math.log(2) + 1e-12).all()


@given(retrievals())
def test_the_plain_functions_agree_with_pairwise(rows: list[Tensor]) -> None:
    weights = [divergence.normalise(w.reshape(-1, w.shape[-1])) for w in rows]
    result = divergence.pairwise(*stacked(rows))
    for j in range(1, len(weights)):
        for name in ("kl", "shape", "mass", "js"):
            single = getattr(divergence, name)(weights[j - 1], weights[j])
            torch.testing.assert_close(
                getattr(result, name)[:, j - 1, j], single, rtol=1e-9, atol=1e-14
            )


@given(st.integers(1, 9), st.integers(0, 2**31))
def test_equal_rows_have_no_divergence(size: int, seed: int) -> None:
    row = torch.rand(4, size, generator=torch.Generator().manual_seed(seed)).double()
    p = divergence.normalise(row)
    for name in ("kl", "shape", "mass", "js"):
        assert getattr(divergence, name)(p, p).abs().max() < 1e-15
    result = divergence.pairwise(torch.stack([p, p, p], dim=1), [size] * 3)
    assert max(part.max() for part in result) < 1e-15


def test_only_new_sources_is_mass_without_shape() -> None:
    p = torch.tensor([[0.25, 0.75]])
    q = torch.tensor([[0.125, 0.375, 0.5]])
    p, q = divergence.normalise(p), divergence.normalise(q)
    assert divergence.mass(p, q).item() == pytest.approx(math.log(2), abs=1e-15)
    assert divergence.shape(p, q).item() == pytest.approx(0, abs=1e-15)
    assert divergence.kl(p, q).item() == pytest.approx(math.log(2), abs=1e-15)


@given(st.integers(2, 6), st.integers(0, 2**31))
def test_js_is_symmetric(size: int, seed: int) -> None:
    rows = torch.rand(2, 5, size, generator=torch.Generator().manual_seed(seed)).double()
    p, q = divergence.normalise(rows)
    torch.testing.assert_close(divergence.js(p, q), divergence.js(q, p))


def test_bf16_rows_are_renormalised_so_that_kl_is_not_negative() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(512, 4, generator=generator).softmax(-1).bfloat16()
    assert (rows.float().sum(-1) - 1).abs().max() > 1e-3
    p = divergence.normalise(rows)
    torch.testing.assert_close(p.sum(-1), torch.ones(512, dtype=torch.float64))
    assert (divergence.kl(p, divergence.normalise(rows.flip(0))) >= 0).all()


def test_an_underflowed_weight_gives_a_large_finite_divergence() -> None:
    p = divergence.normalise(torch.tensor([[0.5, 0.5]]))
    q = divergence.normalise(torch.tensor([[1.0, 0.0]]))
    assert 40 < divergence.kl(p, q).item() < 88


@given(retrievals(), st.randoms())
def test_a_row_does_not_depend_on_the_rows_beside_it(rows: list[Tensor], random: Random) -> None:
    weights, sizes = stacked(rows)
    whole = divergence.pairwise(weights, sizes)
    chosen = random.choices(range(len(weights)), k=random.randint(1, 40))
    part = divergence.pairwise(weights[chosen], sizes)
    for name in ("kl", "shape", "mass", "js"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[chosen]), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@given(rows=retrievals())
def test_packed_retrievals_are_upcast_normalised_and_padded_with_zeros(
    dtype: torch.dtype, rows: list[Tensor]
) -> None:
    rows = [w.to(dtype) for w in rows]
    weights, broken = pack(rows)
    expected, sizes = stacked([w.transpose(0, 1) for w in rows])  # a sample's heads lie apart
    torch.testing.assert_close(weights.permute(2, 0, 1), expected, rtol=1e-14, atol=0)
    assert not broken.any()
    assert all(not weights[t, size:].any() for t, size in enumerate(sizes))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.integers(1, 3))
def test_halving_sums_every_term(values: list[float], rows: int) -> None:
    column = torch.tensor(values, dtype=torch.float64)[:, None].repeat(1, rows)
    result = folded(column)
    assert result.tolist() == pytest.approx([math.fsum(values)] * rows, rel=1e-12, abs=1e-6)

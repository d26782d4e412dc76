"""Sums over the rows (heads, tokens) of each sample: what a stage's statistics are made of.

The rows of a sample are not independent, so only their sum is one observation. Where a sample has
many weights, the sums of all pairs come from matrix products, and no divergence of a single row
and pair is ever stored.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ela_probe.analysis import divergence
from ela_probe.analysis.packing import (
    FLOOR,
    Scratch,
    folded,
    is_large,
    pack,
    parts_of_sample,
    readers,
    site_ranges,
)


class SampleSums(NamedTuple):
    """Sums over the rows of each of N samples, in nats. The pairs are those of `divergence.pairs`.

    kl, mass, js: [pairs, N]. entropy: [T, N]. weights: [T, S, N]. adjacent: the kl of neighbours,
    not summed, [T − 1, rows], head by head. broken: [T], whether weights were no weights.
    """

    kl: Tensor
    mass: Tensor
    js: Tensor
    entropy: Tensor
    weights: Tensor
    adjacent: Tensor
    broken: Tensor


def sample_sums(
    chunk: Sequence[Tensor],
    sizes: Sequence[int],
    neighbours: Tensor,
    scratch: Scratch,
    *,
    heads: int,
) -> SampleSums:
    """The sums of a few samples, as `packing.chunks` yields them.

    Which way they are computed depends on the size of a sample alone, not on how many there are.

    Args:
        neighbours: [T − 1], where the pairs of neighbours are among all pairs.
        heads: how many heads the second axis of the weights has, head by head.
    """
    if is_large(chunk):
        return _of_large_sample(chunk, sizes, neighbours, scratch, heads=heads)
    samples = len(chunk[0])
    weights, broken = pack(chunk, scratch)
    logs = divergence.logarithms(weights, sizes, scratch)
    entropies = divergence.entropies(weights, logs, scratch)
    pairs = divergence.pairs(weights, sizes, scratch, logs=logs)
    return SampleSums(
        _over_rows(pairs.kl, samples),
        _over_rows(pairs.mass, samples),
        _over_rows(pairs.js, samples),
        _over_rows(entropies, samples),
        _over_rows(weights, samples),
        pairs.kl[neighbours],
        broken,
    )


def _of_large_sample(
    chunk: Sequence[Tensor],
    sizes: Sequence[int],
    neighbours: Tensor,
    scratch: Scratch,
    *,
    heads: int,
) -> SampleSums:
    """The sums of a single sample, a part of its rows after the other."""
    sites = len(sizes)
    first, second = torch.triu_indices(sites, sites, 1, device=chunk[0].device)
    total: list[Tensor] = []
    adjacent = []
    for part in parts_of_sample(chunk, heads):
        weights, broken = pack(part, scratch)
        logs = divergence.logarithms(weights, sizes, scratch)
        found = [
            *summed_pairs(weights, logs, sizes, scratch),
            divergence.entropies(weights, logs, scratch).sum(dim=-1),
            weights.sum(dim=-1),
            broken.long(),
        ]
        total = [a + b for a, b in zip(total, found, strict=True)] if total else found
        adjacent.append(adjacent_kl(weights, logs, sizes, scratch).unflatten(-1, (heads, -1)))
    kl, mass, js, entropy, sums, broken = total
    kl = kl.clamp_min_(0.0)
    return SampleSums(
        kl[first, second, None],
        torch.minimum(mass, kl)[first, second, None],
        js.clamp_min(0.0)[first, second, None],
        entropy[:, None],
        sums[..., None],
        torch.cat(adjacent, dim=-1).flatten(1),
        broken > 0,
    )


def summed_pairs(
    weights: Tensor, logs: Tensor, sizes: Sequence[int], scratch: Scratch
) -> tuple[Tensor, Tensor, Tensor]:
    """kl, mass and js of the pairs i < j summed over rows, each [T, T], rounding not yet clipped.

    Args:
        weights: [T, S, rows] as packed. logs: `divergence.logarithms` of them.
    """
    cross = weights.new_zeros(len(sizes), len(sizes))  # Σ over rows and s of w_i(s) log w_j(s)
    for source, first in readers(sizes):
        cross[first:, first:].addmm_(weights[first:, source], logs[first:, source].T)
    kept, mass = _kept_and_mass(weights, sizes)
    # Σ of w_j log w_j over S_i: what js takes of either side
    inside = torch.mul(weights, logs, out=scratch.take("products", weights.shape, weights.device))
    up_to = inside.sum(dim=-1).cumsum(dim=-1)
    own = torch.stack([up_to[:, size - 1] for size in sizes])
    js = own.diagonal()[:, None] + own - 2 * _mixed(weights, sizes, scratch)
    js = js / 2 + math.log(2) / 2 * (weights.shape[-1] - kept)
    return cross.diagonal()[:, None] - cross, mass, js


def adjacent_kl(weights: Tensor, logs: Tensor, sizes: Sequence[int], scratch: Scratch) -> Tensor:
    """KL(w_t ‖ w_{t+1}) of neighbours, [T − 1, rows] in nats; arguments as for `summed_pairs`."""
    terms = scratch.take("products", weights[1:].shape, weights.device)
    torch.sub(logs[:-1], logs[1:], out=terms)
    return folded(terms.mul_(weights[:-1])).clamp_min(0.0)


def _kept_and_mass(weights: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The mass that w_j keeps on S_i and −log of it, summed over rows, [T, T] each."""
    sites, _, rows = weights.shape
    kept, mass = weights.new_full((sites, sites), rows), weights.new_zeros(sites, sites)
    inside = torch.zeros_like(weights[:, 0])
    summed = 0
    for size in sorted(set(sizes[:-1])):
        for source in range(summed, size):
            inside += weights[:, source]
        summed = size
        same = slice(sizes.index(size), sizes.index(size) + sizes.count(size))
        longer = inside[same.stop :].clamp(FLOOR, 1.0)  # for equal sources the mass is exactly 1
        kept[same, same.stop :] = longer.sum(dim=-1)
        mass[same, same.stop :] = longer.log_().sum(dim=-1).neg_()
    return kept, mass


def _mixed(weights: Tensor, sizes: Sequence[int], scratch: Scratch) -> Tensor:
    """Σ over rows and S_i of m log m with m = (w_i + w_j) / 2, [T, T] for i < j, zero elsewhere."""
    sites, _, rows = weights.shape
    found = weights.new_zeros(sites, sites)
    for i, size in enumerate(sizes[:-1]):
        for later in site_ranges(range(i + 1, sites), size * rows, weights.device):
            shape = (len(later), size, rows)
            middle, logs = (scratch.take(n, shape, weights.device) for n in ("middle", "terms"))
            torch.lerp(weights[i, :size], weights[later.start : later.stop, :size], 0.5, out=middle)
            divergence.log_into(middle, logs)
            products = logs.mul_(middle).flatten(1)
            found[i, later.start : later.stop] = products.sum(dim=-1)
    return found


def _over_rows(values: Tensor, samples: int) -> Tensor:
    """Sum over the rows of each sample, [..., rows] to [..., samples]; `values` stays unchanged."""
    rows = values.unflatten(-1, (-1, samples))
    return folded(rows.clone()) if rows.shape[-2] > 1 else rows[..., 0, :]

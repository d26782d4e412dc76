"""Divergences between the retrievals of one stage, in nats (design: shape + mass = kl).

Retrieval i has weights w_i over its sources S_i, and S_i is a prefix of S_j for i < j. Everything
is computed in float64, because the KL of nearly equal rows is a small difference of large terms.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# A weight that underflowed to zero counts as the smallest normal float32: kl <= 87.4 nats.
FLOOR = torch.finfo(torch.float32).tiny

# How many float64 numbers the pairwise Jensen-Shannon divergence may hold at a time (32 MiB).
CHUNK = 4 * 2**20


class Pairwise(NamedTuple):
    """Divergences of every ordered pair i < j, each [rows, sites, sites], zero elsewhere."""

    kl: Tensor
    mass: Tensor
    shape: Tensor
    js: Tensor


def normalise(weights: Tensor) -> Tensor:
    """Detach, upcast to float64 and make the last axis sum to 1.

    In bf16 a softmax row sums to 1 only within 3e-3, and the KL of such rows can be negative.

    Args:
        weights: [..., sources], non-negative. Gates need not sum to 1.
    """
    weights = weights.detach().double().clamp_min(FLOOR)
    return weights / weights.sum(dim=-1, keepdim=True)


def pad(rows: Sequence[Tensor]) -> Tensor:
    """Stack the retrievals of a stage: T tensors [rows, sources_t] to [rows, T, sources_T]."""
    longest = rows[-1].shape[-1]
    return torch.stack(
        [torch.nn.functional.pad(row, (0, longest - row.shape[-1])) for row in rows], dim=1
    )


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p padded with zeros ‖ q) in nats: finite, >= 0, 0 for equal rows.

    Args:
        p: [..., sources_p], rows that sum to 1. q: [..., sources_q], sources_q >= sources_p.
    """
    return _relative_entropy(p, q[..., : p.shape[-1]]).clamp_min(0.0)


def mass(p: Tensor, q: Tensor) -> Tensor:
    """−log of the mass that q keeps on p's sources, in nats; >= 0."""
    return -q[..., : p.shape[-1]].sum(dim=-1).clamp(FLOOR, 1.0).log()


def shape(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q restricted to p's sources and renormalised), in nats."""
    return kl(p, normalise(q[..., : p.shape[-1]]))


def js(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence on the padded support, in nats: symmetric, <= log 2."""
    p = torch.nn.functional.pad(p, (0, q.shape[-1] - p.shape[-1]))
    middle = (p + q) / 2
    halves = _relative_entropy(p, middle) + _relative_entropy(q, middle)
    return (halves / 2).clamp_min(0.0)


def pairwise(weights: Tensor, sizes: Sequence[int]) -> Pairwise:
    """All divergences between the retrievals of a stage, row by row.

    The cross terms Σ_s w_i(s) log w_j(s) of all pairs are one batched matrix product.

    Args:
        weights: [rows, sites, sources] float64, site t normalised over its first sizes[t]
            sources and zero behind them.
        sizes: the number of sources of each site; it never falls.

    Returns: four [rows, sites, sites] tensors; entry (i, j) with i < j is div(w_i, w_j).
    """
    sites = weights.shape[1]
    upper = torch.ones(sites, sites, dtype=torch.bool, device=weights.device).triu(1)
    # Behind a site's sources the log is set to 0; only pairs i < j are kept, whose support is
    # inside S_j, so that no such entry is ever used.
    logs = torch.where(weights > 0, weights, 1.0).log()
    negative_entropy = (weights * logs).sum(dim=-1)
    cross = torch.einsum("nis,njs->nij", weights, logs)
    divergence = (negative_entropy[:, :, None] - cross).clamp_min(0.0) * upper

    within = (
        torch.arange(weights.shape[2], device=weights.device)[None, :]
        < torch.as_tensor(list(sizes), device=weights.device)[:, None]
    )
    kept = torch.einsum("njs,is->nij", weights, within.double()).clamp(FLOOR, 1.0)
    # Exactly zero where j has no source beyond i's: rounding would leave a trace of mass.
    wider = torch.as_tensor(list(sizes), device=weights.device)
    lost = -kept.log() * (upper & (wider[None, :] > wider[:, None]))
    lost = torch.minimum(lost, divergence)
    return Pairwise(divergence, lost, divergence - lost, _pairwise_js(weights))


def _pairwise_js(weights: Tensor) -> Tensor:
    rows, sites, sources = weights.shape
    result = weights.new_zeros(rows, sites, sites)
    step = max(1, CHUNK // (sites * sources))
    for start in range(0, rows, step):
        part = weights[start : start + step]
        own = torch.special.entr(part).sum(dim=-1)
        for j in range(1, sites):
            middle = (part[:, :j] + part[:, j : j + 1]) / 2
            mixed = torch.special.entr(middle).sum(dim=-1)
            result[start : start + step, :j, j] = mixed - (own[:, :j] + own[:, j : j + 1]) / 2
    return result.clamp_min(0.0)


def _relative_entropy(p: Tensor, q: Tensor) -> Tensor:
    return (torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum(dim=-1)

"""Divergences between the retrievals of one stage, in nats (design: shape + mass = kl).

Retrieval i has weights w_i over its sources S_i, and S_i is a prefix of S_j for i < j. Everything
is computed in float64, because the KL of nearly equal rows is a small difference of large terms.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ela_probe.analysis.packing import FLOOR, Scratch, chunks, folded, pack, readers

BLOCK = 6  # earlier sites whose products with all later ones are formed together


class Pairwise(NamedTuple):
    """Divergences of every pair i < j of a stage.

    From `pairs` each [pairs, rows], in the order (0, 1), (0, 2), ..., (1, 2), ...; from `pairwise`
    each [rows, sites, sites], zero elsewhere.
    """

    kl: Tensor
    mass: Tensor
    js: Tensor

    @property
    def shape(self) -> Tensor:
        """[samples, T, T] the shape part, in nats."""
        return self.kl - self.mass


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

    Args:
        weights: [rows, sites, sources] float64, site t normalised over its first sizes[t]
            sources and zero behind them.
        sizes: the number of sources of each site, in non-decreasing order.

    Returns: [rows, sites, sites] tensors; entry (i, j) with i < j is div(w_i, w_j).
    """
    rows, sites, _ = weights.shape
    first, second = torch.triu_indices(sites, sites, 1, device=weights.device)
    found = []
    for part in pairs(weights.permute(1, 2, 0).contiguous(), sizes):
        matrix = weights.new_zeros(sites, sites, rows)
        matrix[first, second] = part
        found.append(matrix.permute(2, 0, 1))
    return Pairwise(*found)


def mean_kl(retrievals: Sequence[Tensor]) -> Tensor:
    """The mean over rows of KL(w_i ‖ w_j), [T, T] in nats, upper triangle.

    Σ_n Σ_s w_i(s) log w_j(s) of all pairs is one matrix product, chunk by chunk.

    Args:
        retrievals: as `RedundancyMetric.update` takes them, T tensors [samples, ..., sources_t].
    """
    sizes = [w.shape[-1] for w in retrievals]
    sites, scratch = len(sizes), Scratch()
    half = sites // 2
    shared = sizes[half - 1] if half else 0  # only the second half of the sites reads the rest
    total = torch.zeros(sites, sites, dtype=torch.float64, device=retrievals[0].device)
    for chunk in chunks(retrievals):
        weights, _ = pack(chunk, scratch)
        logs = logarithms(weights, sizes, scratch)
        for block, first in (slice(shared), 0), (slice(shared, None), half):
            weight, log = (part[first:, block].flatten(1) for part in (weights, logs))
            total[first:, first:].addmm_(weight, log.T)
    total /= retrievals[0][..., 0].numel()
    return (total.diagonal()[:, None] - total).clamp_min_(0.0).triu_(1)


def pairs(
    weights: Tensor,
    sizes: Sequence[int],
    scratch: Scratch | None = None,
    *,
    logs: Tensor | None = None,
) -> Pairwise:
    """As `pairwise`, for retrievals packed by `packing.pack`.

    Args:
        weights: [sites, sources, rows] float64.
        scratch: the result lies in its buffers and is overwritten when they are used again.
        logs: `logarithms` of the weights, if they are known already.

    Returns: [pairs, rows] tensors, for the pairs i < j in the order of the upper triangle.
    """
    scratch = scratch or Scratch()
    logs = logarithms(weights, sizes, scratch) if logs is None else logs
    divergence = kl_pairs(weights, logs, sizes, scratch)
    kept = _kept(weights, sizes, scratch)
    mixed = _js_pairs(weights, logs, kept, sizes, scratch)
    lost = torch.minimum(kept.log_().neg_(), divergence, out=kept)
    return Pairwise(divergence, lost, mixed)


def entropies(weights: Tensor, logs: Tensor, scratch: Scratch | None = None) -> Tensor:
    """−Σ_s w log w of packed weights, [sites, rows] in nats; 0 for a site with a single source.

    Args:
        weights: [sites, sources, rows]. logs: `logarithms` of them.
    """
    terms = (scratch or Scratch()).take("products", weights.shape, weights.device)
    return folded(torch.mul(weights, logs, out=terms)).neg().clamp_min_(0.0)


def logarithms(weights: Tensor, sizes: Sequence[int], scratch: Scratch | None = None) -> Tensor:
    """log w of packed weights; 0 beyond a site's sources."""
    logs = (scratch or Scratch()).zeros("logs", weights.shape, weights.device)
    for weight, log, size in zip(weights, logs, sizes, strict=True):
        log_into(weight[:size], log[:size])
    return logs


def log_into(values: Tensor, out: Tensor) -> Tensor:
    """log of float64 values, written into `out`: most of the time of a Jensen-Shannon divergence.

    With AVX-512 NumPy's logarithm of float64 takes about a quarter of the time of torch's.
    """
    if values.device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX512":
        np.log(values.numpy(), out=out.numpy())
        return out
    return torch.log(values, out=out)


def kl_pairs(
    weights: Tensor, logs: Tensor, sizes: Sequence[int], scratch: Scratch | None = None
) -> Tensor:
    """KL(w_i ‖ w_j) of the pairs i < j, [pairs, rows].

    Args:
        weights: [sites, sources, rows]. logs: `logarithms` of them.
    """
    scratch = scratch or Scratch()
    sites, _, rows = weights.shape
    found = scratch.take("kl", (sites * (sites - 1) // 2, rows), weights.device)
    done = 0  # pairs
    for start in range(0, sites, BLOCK):
        stop = min(start + BLOCK, sites)
        # Σ_s w_i(s) log w_j(s) for a few i and all j >= start. For i = j it is minus the entropy.
        shape = (stop - start, sites - start, rows)
        cross = scratch.take("terms", shape, weights.device)
        for source, first in readers(sizes[:stop]):
            i = max(first - start, 0)
            weight, log = weights[start + i : stop, None, source], logs[None, start + i :, source]
            if source:
                cross[i:, i:].addcmul_(weight, log)
            else:
                torch.mul(weight, log, out=cross)
        for i in range(start, min(stop, sites - 1)):
            row = cross[i - start, i - start :]
            torch.sub(row[:1], row[1:], out=found[done : done + sites - 1 - i])
            done += sites - 1 - i
    return found.clamp_min_(0.0)


def _kept(weights: Tensor, sizes: Sequence[int], scratch: Scratch) -> Tensor:
    """The mass M_ij that w_j keeps on S_i, [pairs, rows]; exactly 1 where S_j = S_i."""
    sites, _, rows = weights.shape
    found = scratch.take("mass", (sites * (sites - 1) // 2, rows), weights.device)
    kept = torch.zeros_like(weights[:, 0])
    done = summed = 0  # pairs, sources
    for i, size in enumerate(sizes[:-1]):
        for source in range(summed, size):
            kept += weights[:, source]
        summed = size
        later = torch.clamp(kept[i + 1 :], FLOOR, 1.0, out=found[done : done + sites - 1 - i])
        later[: sizes[i + 1 :].count(size)].fill_(1.0)  # else rounding would leave a trace of mass
        done += sites - 1 - i
    return found


def _js_pairs(
    weights: Tensor, logs: Tensor, kept: Tensor, sizes: Sequence[int], scratch: Scratch
) -> Tensor:
    """With m = (p + q) / 2: ½ Σ_{s ∈ S_i} (p log p + q log q − 2 m log m) + ½ log 2 · (1 − M)."""
    sites, _, rows = weights.shape
    found = scratch.take("js", kept.shape, weights.device)
    products = torch.mul(weights, logs, out=scratch.take("products", weights.shape, weights.device))
    done = 0  # pairs
    for i, size in enumerate(sizes[:-1]):
        shape = (sites - 1 - i, size, rows)
        terms, middle = (scratch.take(name, shape, weights.device) for name in ("terms", "middle"))
        torch.lerp(weights[i, :size], weights[i + 1 :, :size], 0.5, out=terms)
        log_into(terms, middle).mul_(terms)
        torch.add(products[i, :size], products[i + 1 :, :size], out=terms)
        found[done : done + shape[0]] = folded(terms.sub_(middle, alpha=2))
        done += shape[0]
    return found.sub_(kept - 1.0, alpha=math.log(2)).div_(2).clamp_min_(0.0)


def _relative_entropy(p: Tensor, q: Tensor) -> Tensor:
    return (torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum(dim=-1)

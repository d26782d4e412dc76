"""The retrievals of a stage packed into one buffer, rows innermost.

Every operation then runs along the rows, whose number is large, and not along sources, whose
number is small. What a row yields depends on that row alone, to the last bit: sums over sources go
by halving, in an order that no number of rows changes.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# A weight that underflowed to zero counts as the smallest normal float32: kl <= 87.4 nats.
FLOOR = torch.finfo(torch.float32).tiny

# How many float64 numbers a packed chunk holds: on a CPU what its caches hold.
CPU_CHUNK, DEVICE_CHUNK = 2**18, 2**24


def chunks(retrievals: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The retrievals of a stage, a few samples at a time.

    Args:
        retrievals: T tensors [samples, ..., sources_t].
    """
    last = retrievals[-1]
    samples = len(last)
    budget = CPU_CHUNK if last.device.type == "cpu" else DEVICE_CHUNK
    each = max(1, len(retrievals) * last[:1].numel())
    step = max(1, budget // each)
    for start in range(0, samples, step):
        yield [w[start : start + step] for w in retrievals]


def pack(retrievals: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Upcast to float64, normalise and pack the retrievals of a stage.

    Args:
        retrievals: T tensors [samples, ..., sources_t]; sources_t never falls.

    Returns:
        weights: [T, sources_T, rows] float64; site t sums to 1 over its first sources_t and is
        zero behind them. The rows of a sample (heads, tokens) lie `samples` apart.
        broken: [T] bool, whether any weight of a site is negative, NaN or infinite.
    """
    samples, rows = len(retrievals[0]), retrievals[0][..., 0].numel()
    longest = retrievals[-1].shape[-1]
    weights = torch.zeros(
        len(retrievals), longest, rows, dtype=torch.float64, device=retrievals[0].device
    )
    for own, w in zip(weights, retrievals, strict=True):
        size = w.shape[-1]
        own[:size].view(size, -1, samples).copy_(
            w.detach().reshape(samples, -1, size).permute(2, 1, 0)
        )
    broken = ~(weights.amin(dim=(1, 2)) >= 0) if rows else weights.new_zeros(len(weights)).bool()
    for own, w in zip(weights, retrievals, strict=True):
        own[: w.shape[-1]].clamp_min_(FLOOR)
    total = folded(weights.clone())
    broken |= ~total.isfinite().all(dim=1)
    return weights.div_(total[:, None]), broken


def folded(values: Tensor) -> Tensor:
    """Sum over the last axis but one, [..., terms, rows] to [..., rows]; `values` is used up."""
    size = values.shape[-2]
    while size > 1:
        half = size // 2
        values[..., :half, :] += values[..., size - half : size, :]
        size -= half
    return values[..., 0, :]

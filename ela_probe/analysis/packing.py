"""The retrievals of a stage packed into one buffer, rows innermost.

Every operation then runs along the rows, of which there are many, and not along the sources, of
which there are few. The result of a row depends on that row alone, to the last bit: sums over
sources are additions of whole slices, in an order that does not depend on the number of rows.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# A weight that underflowed to zero counts as the smallest normal float32: kl <= 87.4 nats.
FLOOR = torch.finfo(torch.float32).tiny

# How many float64 numbers a packed chunk holds. On a CPU it fits into the caches.
CPU_CHUNK, DEVICE_CHUNK = 2**19, 2**24
# A sample with more packed numbers is summed by matrix products, so many numbers at a time.
LARGE_SAMPLE, CPU_PART, DEVICE_PART = 2**16, 2**21, 2**26
# How many mixed weights of one site and several later ones are formed at a time.
CPU_MIXED, DEVICE_MIXED = 2**17, 2**24


def chunks(retrievals: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The retrievals of a stage, a few samples at a time.

    Args:
        retrievals: T tensors [samples, ..., sources_t].
    """
    last = retrievals[-1]
    budget = CPU_CHUNK if last.device.type == "cpu" else DEVICE_CHUNK
    step = 1 if is_large(retrievals) else max(1, budget // _numbers_per_sample(retrievals))
    if len(last):
        yield from map(list, zip(*(w.split(step) for w in retrievals), strict=True))


def is_large(retrievals: Sequence[Tensor]) -> bool:
    """Whether a sample has so many weights that `chunks` yields it alone."""
    return _numbers_per_sample(retrievals) > LARGE_SAMPLE


def parts_of_sample(sample: Sequence[Tensor], heads: int) -> Iterator[list[Tensor]]:
    """The retrievals of a single sample, a few rows of every head at a time.

    Args:
        sample: T tensors [1, heads x n, ..., sources_t].

    Yields: T tensors [1, heads, rows, sources_t].
    """
    rows = [w.reshape(1, heads, -1, w.shape[-1]) for w in sample]
    budget = CPU_PART if rows[-1].device.type == "cpu" else DEVICE_PART
    step = max(1, budget // (len(rows) * heads * rows[-1].shape[-1]))
    yield from map(list, zip(*(w.split(step, dim=2) for w in rows), strict=True))


def site_ranges(sites: range, numbers_per_site: int, device: torch.device) -> Iterator[range]:
    """The sites, as many at a time as a buffer of mixed weights holds."""
    budget = CPU_MIXED if device.type == "cpu" else DEVICE_MIXED
    step = max(1, budget // numbers_per_site)
    yield from (sites[at : at + step] for at in range(0, len(sites), step))


def _numbers_per_sample(retrievals: Sequence[Tensor]) -> int:
    return max(1, len(retrievals) * math.prod(retrievals[-1].shape[1:]))


class Scratch:
    """Buffers by name, reused for every chunk, because fresh pages cost more than the sums."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, shape: Sequence[int], device: torch.device) -> Tensor:
        """An uninitialised float64 tensor. Taking the same name again overwrites it."""
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.device != device or buffer.numel() < size:
            buffer = self._buffers[name] = torch.empty(size, dtype=torch.float64, device=device)
        return buffer[:size].view(*shape)

    def zeros(self, name: str, shape: Sequence[int], device: torch.device) -> Tensor:
        """A float64 tensor, zero at first. The same name and shape return it as it was left."""
        buffer = self._buffers.get(name)
        if buffer is None or buffer.device != device or buffer.shape != tuple(shape):
            buffer = torch.zeros(*shape, dtype=torch.float64, device=device)
            self._buffers[name] = buffer
        return buffer


def pack(retrievals: Sequence[Tensor], scratch: Scratch | None = None) -> tuple[Tensor, Tensor]:
    """Upcast to float64, normalise and pack the retrievals of a stage.

    Args:
        retrievals: T tensors [samples, ..., sources_t], sources_t in non-decreasing order.
        scratch: it holds the weights; use it only for retrievals of the same sizes.

    Returns:
        weights: [T, sources_T, rows] float64; site t sums to 1 over its first sources_t and is
        zero after them. The rows of a sample (heads, tokens) are `samples` apart.
        broken: [T] bool, whether any weight of a site is negative, NaN or infinite.
    """
    samples, rows = len(retrievals[0]), retrievals[0][..., 0].numel()
    sizes = [w.shape[-1] for w in retrievals]
    shape = (len(sizes), sizes[-1], rows)
    weights = (scratch or Scratch()).zeros("weights", shape, retrievals[0].device)
    for packed, size, w in zip(weights, sizes, retrievals, strict=True):
        packed[:size].view(size, -1, samples).copy_(
            w.detach().reshape(samples, -1, size).permute(2, 1, 0)
        )
    broken = ~(weights.amin(dim=(1, 2)) >= 0) if rows else weights.new_zeros(shape[0]).bool()
    for packed, size in zip(weights, sizes, strict=True):
        packed[:size].clamp_min_(FLOOR)
    total = weights[:, 0].clone()
    for source, first in readers(sizes):
        if source:
            total[first:] += weights[first:, source]
    broken |= ~total.sum(dim=1).isfinite()
    return weights.div_(total[:, None]), broken


def readers(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Each source with the first site that reads it; all later sites read it too.

    >>> list(readers([1, 1, 3]))
    [(0, 0), (1, 2), (2, 2)]
    """
    for source in range(sizes[-1]):
        yield source, bisect_right(sizes, source)


def folded(values: Tensor) -> Tensor:
    """Sum over the last axis but one, [..., terms, rows] to [..., rows]. Overwrites `values`."""
    size = values.shape[-2]
    while size > 1:
        half = size // 2
        values[..., :half, :] += values[..., size - half : size, :]
        size -= half
    return values[..., 0, :]

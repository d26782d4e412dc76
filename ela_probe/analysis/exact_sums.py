"""Sums of float64 numbers as pairs of integers: exact, so that their order doesn't matter.

The first integer counts multiples of 2^-24, the second the remainder in multiples of 2^-60.
"""

import torch
from torch import Tensor

HIGH, LOW = 2.0**24, 2.0**36


def exact_sum(values: Tensor) -> Tensor:
    """Σ over the last axis as two integers, [..., n] to [2, ...]."""
    high, low = _parts(values)
    return torch.stack([high.long().sum(dim=-1), low.long().sum(dim=-1)])


def exact(values: Tensor) -> Tensor:
    """Each number as two integers, [...] to [2, ...]: the terms of `exact_sum`."""
    return torch.stack(_parts(values)).long()


def _parts(values: Tensor) -> tuple[Tensor, Tensor]:
    values = values * HIGH
    high = values.floor()
    return high, values.sub_(high).mul_(LOW).round_()


def carry(state: Tensor) -> None:
    """Bring the second integer of an exact sum below 2^36, in place."""
    extra = state[1] >> 36
    state[0] += extra
    state[1] -= extra << 36


def value_of(state: Tensor) -> Tensor:
    """An exact sum [2, ...] as float64 [...]."""
    extra = state[1] >> 36
    high, low = state[0] + extra, state[1] - (extra << 36)
    return high.double() / HIGH + low.double() / (HIGH * LOW)


def in_float64(values: Tensor) -> Tensor:
    """The same numbers in float64, on the CPU where their device has none (MPS)."""
    return (values.cpu() if values.device.type == "mps" else values).double()

"""How the tensors of a stage are split into rows, and back."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ela_probe.models.hand_written import by_hand


@dataclass(frozen=True)
class Rows:
    """How the tensors of a stage are split into rows, one a weight.

    shape: [batch, ..., numbers] tensors have a row for each of their leading axes; feature maps
        [batch, channels, height, width] one for each of the heads of a sample.
    """

    shape: torch.Size
    heads: int | None = None
    channels_last: bool = False

    @classmethod
    def of_maps(cls, maps: Tensor, heads: int) -> "Rows":
        """Of feature maps, in their order in memory, which plain operations do not look at."""
        if not by_hand(maps):
            return cls(maps.shape, heads)
        last = not maps.is_contiguous() and maps.is_contiguous(memory_format=torch.channels_last)
        return cls(maps.shape, heads, last)

    @property
    def leading(self) -> tuple[int, ...]:
        if self.heads is None:
            return tuple(self.shape[:-1])
        return self.shape[0], self.heads

    @property
    def count(self) -> int:
        """How many rows there are."""
        return math.prod(self.leading)

    @property
    def numbers(self) -> int:
        """How many numbers a row has."""
        if self.heads is None:
            return self.shape[-1]
        return self.shape[1] // self.heads * self.shape[2] * self.shape[3]

    def split(self, x: Tensor) -> Tensor:
        """[*rows, ...], a view."""
        if self.heads is None:
            return x
        x = x.unflatten(1, (self.heads, -1))
        return x.permute(0, 1, 3, 4, 2) if self.channels_last else x

    def flat(self, x: Tensor) -> Tensor:
        """[rows, numbers], a copy where the numbers of a row don't lie together."""
        return self.split(x).reshape(self.count, self.numbers)

    def block(self, x: Tensor) -> Tensor:
        """[*rows, ...] as `split` gives it, of any tensor with as many numbers."""
        if self.heads is None:
            return x.view(self.shape)
        batch, channels, height, width = self.shape
        depth = channels // self.heads
        if self.channels_last:
            return x.view(batch, self.heads, height, width, depth)
        return x.view(batch, self.heads, depth, height, width)

    def join(self, x: Tensor) -> Tensor:
        """Rows, as `split` gives them or flattened, back to the shape and order of the tensors."""
        x = self.block(x)
        if self.heads is None:
            return x
        if not self.channels_last:
            return x.flatten(1, 2)
        maps = x.permute(0, 2, 3, 1, 4).flatten(3, 4)  # a copy where there are several heads
        return maps.permute(0, 3, 1, 2)

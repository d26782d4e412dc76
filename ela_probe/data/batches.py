"""Seeded batches: order and augmentation follow from seed, epoch and batch number alone.

Several processes that share them read every sample once: none is repeated, none left out.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision.transforms.v2 import functional as tvf

from ela_probe.data.arrays import Images
from ela_probe.data.spec import Augmentation, DataSpec
from ela_probe.errors import DataError

Item = TypeVar("Item")


class Batch:
    """Positions in a data set that are read together, and the seed of their augmentation."""

    def __init__(self, positions: Tensor, seed: int) -> None:
        self.positions = positions
        self.seed = seed


@dataclass(frozen=True)
class Share:
    """What one of `count` processes reads.

    rank: which process, from 0. turn: None for its part of every batch, so that all have as many;
    else whole batches, so many in a row before it is the next process's turn.
    """

    rank: int = 0
    count: int = 1
    turn: int | None = None

    def part_of(self, positions: Tensor) -> Tensor:
        """Its part of a batch: the parts' sizes differ by one at the most."""
        return positions.tensor_split(self.count)[self.rank] if self.turn is None else positions

    def deal(self, batches: Iterable[Item]) -> Iterator[Item]:
        """The batches that it reads at all."""
        if self.turn is None:
            yield from batches
            return
        dealt = iter(batches)
        while turn := list(islice(dealt, self.turn * self.count)):
            yield from turn[self.rank * self.turn : (self.rank + 1) * self.turn]

    def turns(self, count: int) -> int:
        """How many of `count` turns are its own."""
        return len(range(self.rank, count, self.count))


class SeededBatches(Sampler[Batch]):
    """Draws whole batches; the same seed and epoch always give the same ones.

    Where each process reads a part of every batch, what is left over for the last one joins the
    one before it if it is too little for all of them.

    Raises:
        DataError: fewer samples, or samples a batch, than processes that want a part of each.
    """

    def __init__(
        self,
        samples: int,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int,
        share: Share = Share(),
    ) -> None:
        parts = share.count if share.turn is None else 1
        if min(samples, batch_size) < parts:
            raise DataError(
                f"{samples} samples in batches of {batch_size} are too few for {parts} processes, "
                "each of which takes a part of every batch; raise --batch-size, or take fewer "
                "processes"
            )
        self.samples = samples
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.share = share
        self.epoch = 0
        whole, left = divmod(samples, batch_size)
        self._sizes = [batch_size] * whole
        if left >= parts:
            self._sizes.append(left)
        elif left:
            self._sizes[-1] += left

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (from 0) that the next pass over the loader draws."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(1 for _ in self.share.deal(self._sizes))

    def __iter__(self) -> Iterator[Batch]:
        return self.share.deal(self._drawn())

    def _drawn(self) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        order = torch.arange(self.samples)
        if self.shuffle:
            order = torch.randperm(self.samples, generator=generator)
        for positions in torch.split(order, self._sizes):
            seed = int(torch.randint(2**32, (), generator=generator))
            if self.share.turn is None:  # else all processes would augment their parts alike
                seed = (seed + self.share.rank) % 2**32
            yield Batch(self.share.part_of(positions), seed)


def epoch_seed(seed: int, epoch: int) -> int:
    """A 32-bit seed for one epoch (torch's CPU generator uses no more bits than these)."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])


class ImageDataset(Dataset[tuple[Tensor, Tensor]]):
    """Normalised images with labels, by position; augmented ones only in a loader's batches."""

    def __init__(
        self, images: Images, indices: Tensor, *, spec: DataSpec, augment: Augmentation
    ) -> None:
        self.images = images
        self.indices = indices
        self.labels = images.labels[indices]
        self.in_memory = images.in_memory
        self.augment = augment
        self._mean = list(spec.mean)
        self._std = list(spec.std)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int | Batch) -> tuple[Tensor, Tensor]:
        """Image (C, H, W) and label () for a position; (B, C, H, W) and (B,) for a Batch."""
        if isinstance(index, Batch):
            return self._batch(index.positions, seed=index.seed)
        if not 0 <= index < len(self):
            raise IndexError(f"position {index} of {len(self)} images")
        seed = int(torch.randint(2**32, ())) if self.augment != "none" else 0
        images, labels = self._batch(torch.tensor([index]), seed=seed)
        return images[0], labels[0]

    def _batch(self, positions: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
        pixels = self.images.read(self.indices[positions], augment=self.augment, seed=seed)
        scaled = tvf.to_dtype(pixels, torch.float32, scale=True)
        return tvf.normalize(scaled, self._mean, self._std, inplace=True), self.labels[positions]

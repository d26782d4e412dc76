"""Seeded batches: order and augmentation depend only on the seed, the epoch and the batch number.

When several processes share a data set, every sample is read exactly once: none is repeated and
none is left out.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms.v2 import functional as tvf

from ela_probe.data.image_stores import Images
from ela_probe.data.spec import Augmentation, DataSpec
from ela_probe.errors import DataError

Item = TypeVar("Item")


class Batch:
    """Positions in a data set that are read together, and the seed of their augmentation.

    whole: where each of several processes reads a slice of the batch, the positions of them all;
    otherwise the same.
    """

    def __init__(self, positions: Tensor, seed: int, whole: Tensor | None = None) -> None:
        self.positions = positions
        self.seed = seed
        self.whole = positions if whole is None else whole


@dataclass(frozen=True)
class Share:
    """The part of the batches that one of several processes reads.

    Args:
        rank: index of this process, from 0.
        count: number of processes.
        batches_per_turn: when None, each process reads a slice of every batch, so all read equally
            many batches. Otherwise each reads whole batches: this many in a row, then the next
            process takes its turn.
    """

    rank: int = 0
    count: int = 1
    batches_per_turn: int | None = None

    def slice_of(self, positions: Tensor) -> Tensor:
        """This process's slice of a batch; slice sizes differ by at most one."""
        if self.batches_per_turn is not None:
            return positions
        return positions.tensor_split(self.count)[self.rank]

    def select(self, batches: Iterable[Item]) -> Iterator[Item]:
        """The batches of which this process reads a slice or the whole."""
        size = self.batches_per_turn
        if size is None:
            yield from batches
            return
        remaining = iter(batches)
        while turns := list(islice(remaining, size * self.count)):
            yield from turns[self.rank * size : (self.rank + 1) * size]

    def turns(self, total: int) -> int:
        """How many of `total` turns, over all processes, are this process's."""
        return len(range(self.rank, total, self.count))


class SeededBatches(Sampler[Batch]):
    """Yields whole batches; the same seed and epoch always give the same ones.

    When each process reads a slice of every batch and the last batch has fewer samples than there
    are processes, its samples join the batch before.

    Raises:
        DataError: processes share every batch, and there are fewer samples, or samples in a batch,
            than processes.
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
        slices = share.count if share.batches_per_turn is None else 1
        if min(samples, batch_size) < slices:
            raise DataError(
                f"{samples} samples in batches of {batch_size} are too few for {slices} processes: "
                "each process reads a slice of every batch; raise --batch-size, or use fewer "
                "processes"
            )
        self.samples = samples
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.share = share
        self.epoch = 0
        full_batches, rest = divmod(samples, batch_size)
        self._sizes = [batch_size] * full_batches
        if rest >= slices:
            self._sizes.append(rest)
        elif rest:
            self._sizes[-1] += rest

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (from 0) of the next pass over the loader."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(1 for _ in self.share.select(self._sizes))

    def __iter__(self) -> Iterator[Batch]:
        return self.share.select(self._batches())

    def _batches(self) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        order = torch.arange(self.samples)
        if self.shuffle:
            order = torch.randperm(self.samples, generator=generator)
        for positions in torch.split(order, self._sizes):
            seed = int(torch.randint(2**32, (), generator=generator))
            if self.share.batches_per_turn is None:
                # otherwise all processes would augment their slices alike
                seed = (seed + self.share.rank) % 2**32
            yield Batch(self.share.slice_of(positions), seed, positions)


def epoch_seed(seed: int, epoch: int) -> int:
    """A 32-bit seed for one epoch (torch's CPU generator uses no more than 32 bits)."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])


def seeded_loader(
    dataset: Dataset[tuple[Tensor, Tensor]],
    batches: SeededBatches,
    *,
    num_workers: int,
    on_device: bool = False,
) -> "DataLoader[tuple[Tensor, Tensor]]":
    """A DataLoader that passes each Batch to `dataset`. Its own `batch_size` reads None.

    on_device: whether the samples are on a GPU already, so that nothing is pinned for a copy.
    """
    return DataLoader(
        dataset,
        sampler=batches,
        batch_size=None,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available() and not on_device,
        # without a generator, the loader draws its workers' seed from the global random state
        generator=torch.Generator().manual_seed(batches.seed),
    )


class ImageDataset(Dataset[tuple[Tensor, Tensor]]):
    """Normalised images with labels, by position or by Batch.

    Augmentation follows the seed of a Batch; for a single position its seed comes from the global
    random state.
    """

    def __init__(
        self, images: Images, indices: Tensor, *, spec: DataSpec, augment: Augmentation
    ) -> None:
        self.images = images
        self.indices = indices
        self.labels = images.labels[indices]
        self.in_memory, self.on_device = images.in_memory, images.on_device
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
            raise IndexError(f"position {index} is out of range: there are {len(self)} images")
        seed = int(torch.randint(2**32, ())) if self.augment != "none" else 0
        images, labels = self._batch(torch.tensor([index]), seed=seed)
        return images[0], labels[0]

    def _batch(self, positions: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
        pixels = self.images.read(self.indices[positions], augment=self.augment, seed=seed)
        scaled = tvf.to_dtype(pixels, torch.float32, scale=True)
        return tvf.normalize(scaled, self._mean, self._std, inplace=True), self.labels[positions]

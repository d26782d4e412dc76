"""Seeded batches: order and augmentation follow from seed, epoch and batch number alone."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision.transforms.v2 import functional as tvf

from ela_probe.data.arrays import Images
from ela_probe.data.spec import Augmentation, DataSpec


class Batch:
    """Positions in a data set that are read together, and the seed of their augmentation."""

    def __init__(self, positions: Tensor, seed: int) -> None:
        self.positions = positions
        self.seed = seed


class SeededBatches(Sampler[Batch]):
    """Draws whole batches; the same seed and epoch always give the same ones."""

    def __init__(self, samples: int, *, batch_size: int, shuffle: bool, seed: int) -> None:
        self.samples = samples
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (from 0) that the next pass over the loader draws."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        order = torch.arange(self.samples)
        if self.shuffle:
            order = torch.randperm(self.samples, generator=generator)
        for positions in torch.split(order, self.batch_size):
            seed = int(torch.randint(2**32, (), generator=generator))
            yield Batch(positions, seed)


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

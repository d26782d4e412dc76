"""SplitData: the samples of one source in three splits, read in seeded batches."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ela_probe.data.batches import SeededBatches, Share, seeded_loader
from ela_probe.errors import DataError

Split = Literal["train", "val", "test"]
SPLITS = ("train", "val", "test")
Samples = TypeVar("Samples", bound=Dataset[Any])


class SplitData(ABC, Generic[Samples]):
    """Images, texts, sounds or annotated images of one source, split into three.

    Attributes:
        spec: where they come from and how they are read.
    """

    spec: Any
    SAMPLES: ClassVar[str]
    """What the samples are called, as "images"."""
    BATCH_SIZE: ClassVar[int] = 32
    """Samples in a batch where none is given."""
    NO_SAMPLES = "choose a validation fraction above 0"
    """What to do about a split without samples."""

    def __repr__(self) -> str:
        sizes = ", ".join(f"{self.size(split)} {split}" for split in ("train", "val", "test"))
        return f"{type(self).__name__}({self.spec.source}: {sizes}{self._described()})"

    def size(self, split: Split) -> int:
        """Number of samples in "train", "val" or "test"; 0 for "val" when there is none."""
        return len(self._indices(self._checked(split)))

    @abstractmethod
    def labels_digest(self) -> str:
        """SHA-256 of the labels for training and validation, in order."""

    def dataset(
        self, split: Split, *, augment: bool = False, limit: int | None = None, after: int = 0
    ) -> Samples:
        """One split as a map-style data set, which also takes a whole `Batch`.

        Args:
            split: "train", "val" or "test".
            augment: apply the spec's augmentation; analysis reads "train" without it.
            limit: use at most this many samples, a random subset that follows the spec's seed; of
                classes their shares are kept.
            after: use none of the samples that a limit of so many would choose.

        Raises:
            DataError: an unknown split, or a limit below 1.
        """
        indices = self._indices(self._checked(split))
        if limit is not None and limit < 1:
            raise DataError(f"limit {limit} is out of range; expected 1 or more {self.SAMPLES}")
        if limit is not None or after:
            indices = indices[self._order(split, indices)[after:][:limit].sort().values]
        return self._dataset(split, indices, augment=augment)

    def loader(
        self,
        split: Split,
        *,
        batch_size: int | None = None,
        shuffle: bool = False,
        augment: bool = False,
        limit: int | None = None,
        after: int = 0,
        seed: int | None = None,
        num_workers: int | None = None,
        share: Share = Share(),
    ) -> "DataLoader[Any]":
        """Batches of inputs and labels, as `dataset` returns them.

        Order and augmentation depend only on `seed`, the epoch and the batch number: not on
        `num_workers`, nor on the global random state. `loader.sampler.set_epoch(n)` chooses the
        epoch (Lightning calls it); without a call, every pass is the same.

        Args:
            split, augment, limit, after: as in `dataset`.
            batch_size: samples in a batch, BATCH_SIZE when None; the last batch may be smaller.
            shuffle: use a new order in every epoch.
            seed: seed of order and augmentation; the spec's when None.
            num_workers: worker processes; when None, 0 for what is in memory and up to 4 for files.
            share: the part that this process reads when several share the split.

        Raises:
            DataError: the split is unknown or has no samples, they are too few for the processes
                that share them, or the limit is below 1.
        """
        dataset = self.dataset(split, augment=augment, limit=limit, after=after)
        samples = len(dataset)  # type: ignore[arg-type]
        if not samples:
            raise DataError(f"{self.spec.source} has no {split} {self.SAMPLES}; {self.NO_SAMPLES}")
        batches = SeededBatches(
            samples,
            batch_size=self.BATCH_SIZE if batch_size is None else batch_size,
            shuffle=shuffle,
            seed=self.spec.seed if seed is None else seed,
            share=share,
        )
        workers = self._workers(dataset) if num_workers is None else num_workers
        on_device = getattr(dataset, "on_device", False)
        return seeded_loader(dataset, batches, num_workers=workers, on_device=on_device)

    @abstractmethod
    def _indices(self, split: str) -> Tensor:
        """The samples of a split, as int64 (n,)."""

    @abstractmethod
    def _dataset(self, split: str, indices: Tensor, *, augment: bool) -> Samples:
        """The data set of these samples."""

    def _order(self, split: str, indices: Tensor) -> Tensor:
        """Positions in `indices` in the order in which a limit takes them: by the spec's seed."""
        return torch.from_numpy(np.random.default_rng(self.spec.seed).permutation(len(indices)))

    def _workers(self, dataset: Samples) -> int:
        """Worker processes where none are asked for: none, since the samples are in memory."""
        return 0

    def _described(self) -> str:
        """The end of the representation."""
        return f"; {len(self.spec.classes)} classes"

    @staticmethod
    def _checked(split: str) -> str:
        if split not in SPLITS:
            raise DataError(f"unknown split {split!r}: choose train, val or test")
        return split

"""ImageData: one source, opened, split and normalised, ready to be read in batches."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ela_probe.data.arrays import Images
from ela_probe.data.batches import ImageDataset, SeededBatches, Share
from ela_probe.data.sources import Splits, read_splits, stratified_order
from ela_probe.data.spec import Augmentation, DataSpec, absolute_root, absolute_source
from ela_probe.errors import DataError

Split = Literal["train", "val", "test"]

MEASURED_IMAGES = 10_000  # for mean and deviation; more move them by less than 0.001
FILE_WORKERS = 4


def open_images(
    source: str,
    *,
    root: str | Path | None = None,
    download: bool = False,
    limit: int | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
    image_size: int | None = None,
    augment: Augmentation | None = None,
) -> "ImageData":
    """Open a source for the first time and measure its mean and standard deviation.

    Those of ImageNet are the usual ones and are not measured. Its images are read from disk
    whenever they are asked for; every other set that takes at most 1 GiB is kept in memory.

    | source | images | augmentation | test split |
    |---|---|---|---|
    | `digits` | scikit-learn's 8 x 8, upsampled: 3 x 32 x 32 | crop | 360 of 1,797, fixed |
    | `npz:PREFIX` | as stored, C x H x W | crop-flip | PREFIX-test.npz |
    | `folder:DIR` | RGB, resized and centre-cropped: 3 x 32 x 32 | crop-flip | test/ or val/ |
    | `imagenet:DIR` | RGB, resized and cut: 3 x 224 x 224 | resized-crop-flip | val/ |
    | `fashion-mnist` | grey, zero-padded: 1 x 32 x 32 | crop | its own |
    | `cifar10`, `cifar100` | 3 x 32 x 32 | crop-flip | its own |

    A folder's val/ is the test split where there is no test/, else the validation split.

    Args:
        source: see the table; paths may be relative and start with `~`.
        root: where the torchvision data sets lie; `data` in the working directory when None.
        download: fetch a torchvision data set into `root` if it is not there.
        limit: use that many training images (validation included), drawn by `seed` with the
            classes in proportion; None or more than there are uses all.
        val_fraction: share of the training images set aside for validation; 0 for none.
        seed: draws the limited subset and the validation split.
        image_size: resize to this height and width, in pixels.
        augment: "crop" shifts by up to 1/8 of the size (zeros move in), "crop-flip" also mirrors
            left to right, "resized-crop-flip" resizes a random part and mirrors, "none" does
            nothing; the source's own (table) when None.

    Raises:
        DataError: the source is unknown, missing, or doesn't hold what it should, or an argument
            doesn't fit it.
    """
    if not 0 <= val_fraction < 1:
        raise DataError(f"validation fraction {val_fraction} is out of range: expected 0 to 0.9")
    if seed < 0:
        raise DataError(f"seed {seed} is negative: expected 0 or more")
    if image_size is not None and image_size < 1:
        raise DataError(f"image size {image_size} is out of range: expected 1 or more pixels")
    source = absolute_source(source)
    where = absolute_root(root) if root is not None else None
    splits = read_splits(source, root=where, download=download, image_size=image_size)
    if limit is not None and limit < len(splits.classes):
        raise DataError(
            f"limit {limit} is too small: expected {len(splits.classes)} or more, an image a class"
        )
    train, _ = _train_and_val(splits, limit=limit, val_fraction=val_fraction, seed=seed)
    mean, std = splits.normalisation or _measured(
        splits.train, train[:: max(1, len(train) // MEASURED_IMAGES)]
    )
    spec = DataSpec(
        source=source,
        root=where,
        image_size=splits.train.size,
        channels=splits.train.channels,
        mean=mean,
        std=std,
        classes=splits.classes,
        val_fraction=val_fraction,
        seed=seed,
        limit=limit,
        augment=augment or splits.augment,
    )
    return ImageData(spec, splits)


class ImageData:
    """The splits of one source, with the normalisation and classes of `spec`.

    Made by `open_images` (which measures the spec) or `ImageData.from_spec` (which follows one).
    """

    def __init__(self, spec: DataSpec, splits: Splits) -> None:
        self.spec = spec
        train, val = _train_and_val(
            splits, limit=spec.limit, val_fraction=spec.val_fraction, seed=spec.seed
        )
        val_images = splits.train if splits.val is None else splits.val
        everything = torch.arange(len(splits.test.labels))
        self._parts: dict[str, tuple[Images, Tensor]] = {
            "train": (splits.train, train),
            "val": (val_images, val),
            "test": (splits.test, everything),
        }

    @classmethod
    def from_spec(
        cls, spec: DataSpec, *, root: str | Path | None = None, download: bool = False
    ) -> "ImageData":
        """Open the images that `spec` describes, normalised and split as it says.

        Args:
            spec: as `open_data` measured it, possibly moved by `DataSpec.with_source`.
            root: replaces the spec's own folder of the torchvision data sets.
            download: fetch a torchvision data set if it is not there.

        Raises:
            DataError: the source is missing, or holds other classes or channels than the spec.
        """
        spec = spec.with_source(spec.source, root=root)
        splits = read_splits(
            spec.source, root=spec.root, download=download, image_size=spec.image_size
        )
        if splits.train.channels != spec.channels:
            raise DataError(
                f"{spec.source} has {splits.train.channels} channels, expected {spec.channels} as "
                "in the data that the model was trained on: choose other data with --data"
            )
        if splits.classes != spec.classes:
            raise DataError(
                f"{spec.source} has the {len(splits.classes)} classes {_few(splits.classes)}, "
                f"expected the {len(spec.classes)} classes {_few(spec.classes)} of the data that "
                "the model was trained on: choose other data with --data"
            )
        return cls(spec, splits)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{self.size(split)} {split}" for split in ("train", "val", "test"))
        return f"ImageData({self.spec.source}: {sizes}; {self.spec.num_classes} classes)"

    def size(self, split: Split) -> int:
        """Number of images in "train", "val" or "test"; 0 for "val" when none is set aside."""
        return len(self._part(split)[1])

    def dataset(
        self, split: Split, *, augment: bool = False, limit: int | None = None
    ) -> ImageDataset:
        """One split as a map-style data set of normalised images.

        Args:
            split: "train", "val" or "test".
            augment: apply the spec's augmentation; without it "train" is what analysis reads.
            limit: only so many images, drawn by the spec's seed with classes in proportion.

        Raises:
            DataError: an unknown split, or a limit below 1.
        """
        images, indices = self._part(split)
        if limit is not None:
            if limit < 1:
                raise DataError(f"limit {limit} is out of range: expected 1 or more images")
            order = stratified_order(images.labels[indices], seed=self.spec.seed)
            indices = indices[order[:limit].sort().values]
        return ImageDataset(
            images, indices, spec=self.spec, augment=self.spec.augment if augment else "none"
        )

    def loader(
        self,
        split: Split,
        *,
        batch_size: int = 128,
        shuffle: bool = False,
        augment: bool = False,
        limit: int | None = None,
        seed: int | None = None,
        num_workers: int | None = None,
        share: Share = Share(),
    ) -> "DataLoader[tuple[Tensor, Tensor]]":
        """Batches of images, float32 (B, C, H, W), and labels, int64 (B,).

        Order and augmentation depend on `seed`, the epoch and the batch's number alone: not on
        `num_workers`, nor on the global random state. `loader.sampler.set_epoch(n)` chooses the
        epoch (Lightning calls it); without that every pass is the same. The loader's own
        `batch_size` reads None, since its sampler makes the batches.

        Args:
            split: "train", "val" or "test".
            batch_size: images a batch; the last one may be smaller.
            shuffle: a new order every epoch.
            augment: apply the spec's augmentation.
            limit: as in `dataset`.
            seed: of order and augmentation; the spec's when None.
            num_workers: processes that read; when None, 0 for images in memory and up to 4 for
                files.
            share: what one of several processes gets of it; everything by default.

        Raises:
            DataError: an unknown split, one without images, too few for the processes that share
                them, or a limit below 1.
        """
        dataset = self.dataset(split, augment=augment, limit=limit)
        if not len(dataset):
            raise DataError(
                f"{self.spec.source} has no {split} images: set some aside with a validation "
                "fraction above 0"
            )
        if num_workers is None:
            cores = torch.get_num_threads()
            num_workers = 0 if dataset.in_memory else min(FILE_WORKERS, cores)
        batches = SeededBatches(
            len(dataset),
            batch_size=batch_size,
            shuffle=shuffle,
            seed=self.spec.seed if seed is None else seed,
            share=share,
        )
        return DataLoader(
            dataset,
            sampler=batches,
            batch_size=None,
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
            # else the loader draws its workers' seed from the global random state
            generator=torch.Generator().manual_seed(batches.seed),
        )

    def _part(self, split: str) -> tuple[Images, Tensor]:
        if split not in self._parts:
            raise DataError(f"unknown split {split!r}: choose train, val or test")
        return self._parts[split]


def _train_and_val(
    splits: Splits, *, limit: int | None, val_fraction: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Sorted indices of the training and of the validation images, int64.

    The limit comes first: `limit` images in all. Where a source has its own validation split the
    fraction is not taken off its training images.
    """
    labels = splits.train.labels
    chosen = stratified_order(labels, seed=seed)[:limit]
    if splits.val is not None:
        own = torch.arange(len(splits.val.labels)) if val_fraction else chosen[:0]
        return chosen.sort().values, own
    count = max(1, round(len(chosen) * val_fraction)) if val_fraction else 0
    if count >= len(chosen):
        raise DataError(
            f"{len(chosen)} training images leave none beside {count} for validation: take a "
            "smaller validation fraction, or more images"
        )
    # another seed: the first images of the same order would be the limited subset's own
    order = chosen[stratified_order(labels[chosen], seed=seed + 1)]
    return order[count:].sort().values, order[:count].sort().values


def _measured(images: Images, indices: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of the pixels in [0, 1], in float64."""
    total = torch.zeros(images.channels, dtype=torch.float64)
    squares = torch.zeros(images.channels, dtype=torch.float64)
    for part in torch.split(indices, 512):
        pixels = images.read(part).double() / 255
        total += pixels.sum((0, 2, 3))
        squares += pixels.square().sum((0, 2, 3))
    count = len(indices) * images.size**2
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0)
    # a channel that never changes carries nothing: any positive divisor will do
    std = torch.where(variance > 1e-12, variance.sqrt(), torch.ones_like(variance))
    return tuple(mean.tolist()), tuple(std.tolist())


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")

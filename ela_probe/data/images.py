"""ImageData: the images of one source, split and normalised, read in batches."""

import hashlib
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ela_probe.data.batches import ImageDataset
from ela_probe.data.image_stores import ArrayImages, Images
from ela_probe.data.normalisation import mean_and_std
from ela_probe.data.source_names import absolute_root, absolute_source
from ela_probe.data.sources import read_splits
from ela_probe.data.spec import LARGEST_SIZE, Augmentation, DataSpec
from ela_probe.data.split_data import SplitData
from ela_probe.data.splits import Splits
from ela_probe.data.stratified import stratified_order, train_and_val_indices
from ela_probe.errors import DataError, DataWarning
from ela_probe.system.messages import shortened

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

    ImageNet's mean and standard deviation are the usual constants. Its images are decoded from
    disk on every read; any other set of at most 1 GiB is kept in memory. Files other than
    ImageNet's are checked first: up to 10,000 of a split are decoded, of more only the headers are
    read. Warns (DataWarning) of images without variance and of classes without images.

    | source | images | augmentation | test split |
    |---|---|---|---|
    | `digits` | scikit-learn's 8 x 8, upsampled: 3 x 32 x 32 | crop | 360 of 1,797, fixed |
    | `npz:PREFIX` | as stored, C x H x W; uint8 (see `pixels`) | crop-flip | its own, or val |
    | `folder:DIR` | RGB, resized and centre-cropped: 3 x 32 x 32 | crop-flip | test/ or val/ |
    | `imagenet:DIR` | RGB, resized and cut: 3 x 224 x 224 | resized-crop-flip | val/ |
    | `fashion-mnist` | grey, zero-padded: 1 x 32 x 32 | crop | its own |
    | `cifar10`, `cifar100` | 3 x 32 x 32 | crop-flip | its own |

    A folder's val/ is the validation split if there is a test/, else the test split.

    Args:
        source: see the table; paths may be relative and start with `~`.
        root: folder of the torchvision data sets; `data` in the working directory when None.
        download: fetch a torchvision data set into `root` if it is missing.
        limit: use this many training images (validation included), a random subset with the
            classes in proportion; all images when None or when there are fewer.
        val_fraction: share of the training images for validation; 0 for none.
        seed: seed of the limited subset and of the validation split.
        image_size: resize to this height and width, in pixels.
        augment: "crop" shifts by up to 1/8 of the size and fills with zeros, "crop-flip" also
            mirrors left to right, "resized-crop-flip" resizes a random part and mirrors, "none"
            does nothing; the source's default (see the table) when None.

    Raises:
        DataError: the source is unknown or missing, doesn't contain what it should, or an
            argument is out of range.
    """
    if not 0 <= val_fraction < 1:
        raise DataError(f"validation fraction {val_fraction} is out of range; expected 0 to 0.9")
    if seed < 0:
        raise DataError(f"seed {seed} is negative; expected 0 or more")
    if image_size is not None and not 1 <= image_size <= LARGEST_SIZE:
        raise DataError(
            f"image size {image_size} is out of range; expected 1 to {LARGEST_SIZE:,} pixels"
        )
    source = absolute_source(source)
    folder = absolute_root(root) if root is not None else None
    splits = read_splits(source, root=folder, download=download, image_size=image_size)
    if limit is not None and limit < len(splits.classes):
        raise DataError(
            f"limit {limit} is too small; expected {len(splits.classes)} or more, one image per "
            "class"
        )
    train, val = _train_and_val(splits, limit=limit, val_fraction=val_fraction, seed=seed)
    (splits.train if splits.val is None else splits.val).check(val)
    splits.test.check(torch.arange(len(splits.test.labels)))
    splits.train.check(train)
    _warn_of_empty_classes(splits, source)
    mean, std = splits.normalisation or mean_and_std(splits.train, train, source=source)
    spec = DataSpec(
        source=source,
        root=folder,
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


class ImageData(SplitData[ImageDataset]):
    """The splits of one source, with the normalisation and classes of `spec`.

    Batches are normalised images, float32 (B, C, H, W), and labels, int64 (B,).

    `open_images` measures the spec; `ImageData.from_spec` uses an existing one.
    """

    spec: DataSpec
    SAMPLES = "images"
    BATCH_SIZE = 128

    def __init__(self, spec: DataSpec, splits: Splits) -> None:
        self.spec, self._splits = spec, splits
        train, val = _train_and_val(
            splits, limit=spec.limit, val_fraction=spec.val_fraction, seed=spec.seed
        )
        self._parts: dict[str, tuple[Images, Tensor]] = {
            "train": (splits.train, train),
            "val": (splits.train if splits.val is None else splits.val, val),
            "test": (splits.test, torch.arange(len(splits.test.labels))),
        }

    @classmethod
    def from_spec(
        cls, spec: DataSpec, *, root: str | Path | None = None, download: bool = False
    ) -> "ImageData":
        """Open the images that `spec` describes, with its normalisation and split.

        Args:
            spec: as `open_data` measured it, possibly with another source
                (`DataSpec.with_source`).
            root: replaces the spec's folder of the torchvision data sets.
            download: fetch a torchvision data set if it is missing.

        Raises:
            DataError: the source is missing, or its classes or channels differ from the spec's.
        """
        spec = spec.with_source(spec.source, root=root)
        splits = read_splits(
            spec.source, root=spec.root, download=download, image_size=spec.image_size
        )
        if splits.train.channels != spec.channels:
            raise DataError(
                f"{spec.source} has {splits.train.channels} channels, expected {spec.channels} as "
                "in the data that the model was trained on; choose other data with --data"
            )
        if splits.classes != spec.classes:
            raise DataError(
                f"{spec.source} has the {len(splits.classes)} classes {_few(splits.classes)}, "
                f"expected the {len(spec.classes)} classes {_few(spec.classes)} of the data that "
                "the model was trained on; choose other data with --data"
            )
        return cls(spec, splits)

    def on_device(self, device: torch.device) -> "ImageData":
        """The same images in the memory of a device; batches of them are made there.

        Raises:
            DataError: the images are not kept in memory as arrays, as those of `npz:PREFIX`,
                `cifar10` and other sets without a file for each image are.
        """

        def moved(store: Images) -> Images:
            if isinstance(store, ArrayImages):
                return store.to(device)
            raise DataError(
                f"data_on_device: got {self.spec.source}, whose images are separate files; "
                "expected npz:PREFIX, cifar10 or another set of arrays; leave data_on_device out"
            )

        splits = self._splits
        val = None if splits.val is None else moved(splits.val)
        return ImageData(
            self.spec, replace(splits, train=moved(splits.train), val=val, test=moved(splits.test))
        )

    def labels_digest(self) -> str:
        """SHA-256 of the labels for training and validation, in order."""
        digest = hashlib.sha256()
        for split in ("train", "val"):
            images, indices = self._parts[split]
            digest.update(images.labels[indices].numpy().tobytes())
        return digest.hexdigest()

    def _indices(self, split: str) -> Tensor:
        return self._parts[split][1]

    def _order(self, split: str, indices: Tensor) -> Tensor:
        return stratified_order(self._parts[split][0].labels[indices], seed=self.spec.seed)

    def _dataset(self, split: str, indices: Tensor, *, augment: bool) -> ImageDataset:
        chosen = self.spec.augment if augment else "none"
        return ImageDataset(self._parts[split][0], indices, spec=self.spec, augment=chosen)

    def _workers(self, dataset: ImageDataset) -> int:
        return 0 if dataset.in_memory else min(FILE_WORKERS, torch.get_num_threads())


def _train_and_val(
    splits: Splits, *, limit: int | None, val_fraction: float, seed: int
) -> tuple[Tensor, Tensor]:
    return train_and_val_indices(
        splits.train.labels,
        None if splits.val is None else splits.val.labels,
        limit=limit,
        val_fraction=val_fraction,
        seed=seed,
    )


def _warn_of_empty_classes(splits: Splits, source: str) -> None:
    counts = splits.train.labels.bincount(minlength=len(splits.classes))
    empty = tuple(splits.classes[label] for label in (counts == 0).nonzero().flatten().tolist())
    if empty:
        warnings.warn(
            f"{len(empty)} of the {len(splits.classes)} classes of {source} have no training "
            f"image ({_few(empty)}); expected classes numbered from 0, each with images",
            DataWarning,
            stacklevel=4,
        )


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(map(shortened, names[:4])) + (", ..." if len(names) > 4 else "")

"""Reading a source by its name: `read_splits` chooses the reader and resizes what it returns."""

from dataclasses import replace
from pathlib import Path

import torch
from torchvision.transforms.v2 import functional as tvf

from ela_probe.data.digits import read_digits
from ela_probe.data.folders import read_folder, read_imagenet
from ela_probe.data.image_stores import ArrayImages, Images
from ela_probe.data.npz import read_npz
from ela_probe.data.source_files import torchvision_folder
from ela_probe.data.splits import Splits
from ela_probe.data.torchvision_sets import read_cifar, read_fashion_mnist
from ela_probe.errors import DataError

FOLDER_SIZE = 32
IMAGENET_SIZE = 224


def read_splits(source: str, *, root: str | None, download: bool, image_size: int | None) -> Splits:
    """Open `source`, in the form that DataSpec stores.

    Raises:
        DataError: files are missing, or don't contain what the source needs.
    """
    kind, _, path = source.partition(":")
    if kind == "digits":
        splits = read_digits()
    elif kind == "npz":
        splits = read_npz(path)
    elif kind == "folder":
        return read_folder(Path(path), image_size=image_size or FOLDER_SIZE)
    elif kind == "imagenet":
        return read_imagenet(Path(path), image_size=image_size or IMAGENET_SIZE)
    else:
        folder = torchvision_folder(root)
        if kind == "fashion-mnist":
            splits = read_fashion_mnist(folder, download=download)
        else:
            splits = read_cifar(kind, folder, download=download)
    return _resized(splits, source, image_size)


def _resized(splits: Splits, source: str, image_size: int | None) -> Splits:
    """The same splits with square images of `image_size`, or of the training images' size."""

    def resize(part: Images) -> ArrayImages:
        assert isinstance(part, ArrayImages)
        height, width = part.images.shape[-2:]
        if image_size is None and height != width:
            raise DataError(
                f"images of {source} are {height} x {width}, expected square images; choose a "
                "size to resize them to with --image-size"
            )
        size = image_size or splits.train.size
        if (height, width) == (size, size):
            return part
        resized = torch.empty((len(part.labels), part.channels, size, size), dtype=torch.uint8)
        for chunk, out in zip(part.images.split(4096), resized.split(4096), strict=True):
            out.copy_(tvf.resize(chunk.contiguous(), [size, size], antialias=True))
        return ArrayImages(resized, part.labels)

    return replace(
        splits,
        train=resize(splits.train),
        val=None if splits.val is None else resize(splits.val),
        test=resize(splits.test),
    )

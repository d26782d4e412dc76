"""Fashion-MNIST, CIFAR-10 and CIFAR-100, as torchvision downloads them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ela_probe.data.idx import read_fashion_mnist_split
from ela_probe.data.image_stores import ArrayImages
from ela_probe.data.splits import Splits
from ela_probe.errors import DataError
from ela_probe.system.messages import first_line


def read_fashion_mnist(root: Path, *, download: bool) -> Splits:
    """Fashion-MNIST, zero-padded to 1 x 32 x 32. Raises DataError."""
    from torchvision.datasets import FashionMNIST

    if download:
        _open(lambda: FashionMNIST(root, download=True), "fashion-mnist", root, download)
    splits = {split: read_fashion_mnist_split(root, split) for split in ("train", "test")}
    return Splits(
        train=ArrayImages(*splits["train"]),
        test=ArrayImages(*splits["test"]),
        classes=tuple(FashionMNIST.classes),
        augment="crop",
    )


def read_cifar(name: str, root: Path, *, download: bool) -> Splits:
    """CIFAR-10 or CIFAR-100 ("cifar10", "cifar100"), 3 x 32 x 32. Raises DataError."""
    from torchvision import datasets

    family = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100

    def read(train: bool) -> Any:
        if root.name == family.base_folder:
            raise DataError(
                f"{root} is the folder of {name} itself; point --data-root at {root.parent}"
            )
        return _open(lambda: family(root, train=train, download=download), name, root, download)

    def images(cifar: Any) -> ArrayImages:
        pixels = torch.from_numpy(cifar.data).permute(0, 3, 1, 2)
        return ArrayImages(pixels, torch.tensor(cifar.targets))

    train, test = read(True), read(False)
    return Splits(
        train=images(train), test=images(test), classes=tuple(train.classes), augment="crop-flip"
    )


def _open(dataset: Callable[[], Any], name: str, root: Path, download: bool) -> Any:
    try:
        return dataset()
    except (RuntimeError, OSError) as error:
        if download:
            raise DataError(
                f"{name} can't be downloaded to {root} ({first_line(error)}); try again"
            ) from error
        raise DataError(
            f"{name} is not in {root}, or its files are damaged; point --data-root at the folder "
            "that torchvision downloaded it to, or add --download"
        ) from error

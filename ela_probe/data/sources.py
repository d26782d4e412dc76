"""Reading each source into uint8 images with labels, checked before anything uses them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf

from ela_probe.data.arrays import ArrayImages, FileImages, Images, Photographs
from ela_probe.data.idx import read_fashion_mnist
from ela_probe.data.spec import Augmentation
from ela_probe.errors import DataError
from ela_probe.system.messages import first_line

DEFAULT_ROOT = "data"  # torchvision's habit: a folder of the working directory
FOLDER_SIZE = 32
IMAGENET_SIZE = 224
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DIGITS_SPLIT_SEED = 0  # never the user's: the test images must stay the same for every run


@dataclass(frozen=True)
class Splits:
    """What a source holds. `val` is None where it has none of its own.

    normalisation: mean and standard deviation per channel, where it is not to be measured.
    """

    train: Images
    test: Images
    classes: tuple[str, ...]
    augment: Augmentation
    val: Images | None = None
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None


def read_splits(source: str, *, root: str | None, download: bool, image_size: int | None) -> Splits:
    """Open `source` (as DataSpec writes it).

    Raises:
        DataError: files are missing or don't hold what the source should.
    """
    kind, _, path = source.partition(":")
    if kind == "digits":
        splits = _digits()
    elif kind == "npz":
        splits = _npz(path)
    elif kind == "folder":
        return _folder(Path(path), image_size=image_size or FOLDER_SIZE)
    elif kind == "imagenet":
        return _imagenet(Path(path), image_size=image_size or IMAGENET_SIZE)
    else:
        where = Path(root or DEFAULT_ROOT).absolute()
        reader = _fashion_mnist if kind == "fashion-mnist" else _cifar
        splits = reader(kind, where, download)
    return _resized(splits, source, image_size)


def stratified_order(labels: Tensor, *, seed: int) -> Tensor:
    """A seeded order of the samples whose every prefix holds the classes in proportion.

    Args:
        labels: class per sample, int64 (N,).
        seed: of the shuffle within each class and of the order of ties.

    Returns:
        Indices, int64 (N,): a permutation of 0..N-1.
    """
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(labels))
    by_class = labels.numpy()[shuffled]
    place = np.empty(len(labels))
    for label in np.unique(by_class):
        (members,) = np.nonzero(by_class == label)
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return torch.from_numpy(shuffled[np.argsort(place, kind="stable")])


def _digits() -> Splits:
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)
    large = torch.nn.functional.interpolate(small, size=32, mode="bilinear")
    images = large.round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(digits.target).long()
    order = stratified_order(labels, seed=DIGITS_SPLIT_SEED)
    test, train = (part.sort().values for part in torch.split(order, [360, len(order) - 360]))
    return Splits(
        train=ArrayImages(images[train], labels[train]),
        test=ArrayImages(images[test], labels[test]),
        classes=tuple(str(name) for name in digits.target_names),
        augment="crop",  # a flipped digit is another one; shifted by 4 of 32 pixels it is not
    )


def _npz(prefix: str) -> Splits:
    files = {split: Path(f"{prefix}-{split}.npz") for split in ("train", "test")}
    for path in files.values():
        if not path.is_file():
            raise DataError(
                f"{path} does not exist: npz:{prefix} needs {prefix}-train.npz and "
                f"{prefix}-test.npz, each with images (uint8, N x H x W x C) and labels"
            )
    arrays = {split: _npz_arrays(path) for split, path in files.items()}
    names = {split: names for split, (_, _, names) in arrays.items() if names is not None}
    if len(set(names.values())) > 1:
        raise DataError(
            f"class names differ between {files['train']} and {files['test']}: "
            f"{_first_difference(names['train'], names['test'])}; write both from one list"
        )
    highest = max(int(labels.max()) for _, labels, _ in arrays.values())
    classes = next(iter(names.values()), tuple(str(label) for label in range(highest + 1)))
    for split, (_, labels, _) in arrays.items():
        if int(labels.max()) >= len(classes):
            raise DataError(
                f"{files[split]} has label {int(labels.max())}, expected 0 to "
                f"{len(classes) - 1} ({len(classes)} classes are named)"
            )
    train, test = (ArrayImages(images, labels) for images, labels, _ in arrays.values())
    if train.channels != test.channels:
        raise DataError(
            f"{files['train']} has {train.channels} channels, {files['test']} {test.channels}: "
            "both need the same"
        )
    return Splits(train=train, test=test, classes=classes, augment="crop-flip")


def _npz_arrays(path: Path) -> tuple[Tensor, Tensor, tuple[str, ...] | None]:
    """Images (N, C, H, W), labels (N,) and the class names, if named."""
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in ("images", "labels") if key not in file.files]
            if missing:
                raise DataError(
                    f"{path} holds no {' and no '.join(missing)} (it holds "
                    f"{', '.join(file.files) or 'nothing'}): expected images and labels"
                )
            images, labels = file["images"], file["labels"]
            named = file["classes"] if "classes" in file.files else None
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib, pickle and NumPy each have their own
        raise DataError(
            f"{path} can't be read as .npz of plain arrays ({first_line(error)}): "
            "write it with numpy.savez"
        ) from error
    if images.dtype != np.uint8 or images.ndim != 4:
        raise DataError(
            f"{path}: images are {images.dtype} {images.shape}, expected uint8 (N, H, W, C)"
        )
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(f"{path}: labels are {labels.dtype} {labels.shape}, expected integers (N,)")
    if len(images) != len(labels):
        raise DataError(f"{path}: {len(images)} images but {len(labels)} labels")
    if not images.size:
        raise DataError(f"{path}: images are empty, shape {images.shape}")
    if labels.min() < 0:
        raise DataError(f"{path} has label {labels.min()}, expected 0 and up")
    names = None if named is None else tuple(str(name) for name in named.ravel())
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return pixels, torch.from_numpy(labels.astype(np.int64)), names


def _folder(root: Path, *, image_size: int) -> Splits:
    if not (root / "train").is_dir():
        raise DataError(
            f"{root / 'train'} is no folder: expected {root}/train/CLASS/IMAGE and the same "
            "under val/ or test/"
        )
    held_out = [name for name in ("test", "val") if (root / name).is_dir()]
    if not held_out:
        raise DataError(f"{root} has neither test/ nor val/: expected one of them beside train/")
    classes, found = _files(root, ("train", *held_out))
    images = {split: FileImages(files, image_size=image_size) for split, files in found.items()}
    return Splits(
        train=images["train"],
        test=images[held_out[0]],
        val=images["val"] if len(held_out) == 2 else None,
        classes=classes,
        augment="crop-flip",
    )


def _imagenet(root: Path, *, image_size: int) -> Splits:
    """train/ and val/ with a folder a class, as torchvision.datasets.ImageNet unpacks them."""
    if not (root / "train").is_dir() or not (root / "val").is_dir():
        archives = sorted(path.name for path in root.glob("ILSVRC2012_*.tar*"))
        unpacked = (
            f"; unpack {', '.join(archives)} with torchvision.datasets.ImageNet({str(root)!r}, "
            "split) for the splits 'train' and 'val'"
            if archives
            else ""
        )
        raise DataError(
            f"{root} lacks train/ or val/: expected {root}/train/CLASS/IMAGE and the same under "
            f"val/{unpacked}"
        )
    classes, found = _files(root, ("train", "val"))
    images = {split: Photographs(files, image_size=image_size) for split, files in found.items()}
    return Splits(
        train=images["train"],
        test=images["val"],
        classes=classes,
        augment="resized-crop-flip",
        normalisation=(IMAGENET_MEAN, IMAGENET_STD),
    )


def _files(
    root: Path, splits: Sequence[str]
) -> tuple[tuple[str, ...], dict[str, list[tuple[str, int]]]]:
    """The classes of an ImageFolder, and the files of each split with their labels."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    first: tuple[str, ...] = ()
    found: dict[str, list[tuple[str, int]]] = {}
    for split in splits:
        folder = root / split
        classes = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
        index = {name: label for label, name in enumerate(classes)}
        files = make_dataset(folder, index, IMG_EXTENSIONS, allow_empty=True) if index else []
        if not files:
            raise DataError(
                f"{folder} holds no images: expected {folder}/CLASS/IMAGE with one of "
                f"{', '.join(IMG_EXTENSIONS)}"
            )
        first = first or classes
        if classes != first:
            raise DataError(
                f"class folders differ between {root / splits[0]} and {folder}: "
                f"{_first_difference(first, classes)}"
            )
        found[split] = files
    return first, found


def _fashion_mnist(kind: str, root: Path, download: bool) -> Splits:
    from torchvision.datasets import FashionMNIST

    if download:
        _downloaded(lambda: FashionMNIST(root, download=True), kind, root, download)
    splits = {split: read_fashion_mnist(root, split) for split in ("train", "test")}
    return Splits(
        train=ArrayImages(*splits["train"]),
        test=ArrayImages(*splits["test"]),
        classes=tuple(FashionMNIST.classes),
        augment="crop",
    )


def _cifar(kind: str, root: Path, download: bool) -> Splits:
    from torchvision import datasets

    family = datasets.CIFAR10 if kind == "cifar10" else datasets.CIFAR100

    def read(train: bool) -> ArrayImages:
        cifar = _downloaded(
            lambda: family(root, train=train, download=download), kind, root, download
        )
        pixels = torch.from_numpy(cifar.data).permute(0, 3, 1, 2).contiguous()
        names.append(tuple(cifar.classes))
        return ArrayImages(pixels, torch.tensor(cifar.targets))

    names: list[tuple[str, ...]] = []
    train, test = read(True), read(False)
    return Splits(train=train, test=test, classes=names[0], augment="crop-flip")


def _downloaded(open_it: Callable[[], Any], kind: str, root: Path, download: bool) -> Any:
    try:
        return open_it()
    except (RuntimeError, OSError) as error:
        todo = "try again" if download else "point --data-root at it, or add --download"
        raise DataError(f"{kind} is not in {root} ({first_line(error)}): {todo}") from error


def _resized(splits: Splits, source: str, image_size: int | None) -> Splits:
    def resize(part: ArrayImages) -> ArrayImages:
        height, width = part.images.shape[-2:]
        if image_size is None and height != width:
            raise DataError(
                f"images of {source} are {height} x {width}, expected square ones: "
                "give an image size to resize them to"
            )
        size = image_size or splits.train.size
        if (height, width) == (size, size):
            return part
        chunks = [
            tvf.resize(chunk, [size, size], antialias=True)
            for chunk in torch.split(part.images, 4096)
        ]
        return ArrayImages(torch.cat(chunks), part.labels)

    assert isinstance(splits.train, ArrayImages)
    assert isinstance(splits.test, ArrayImages)
    return Splits(resize(splits.train), resize(splits.test), splits.classes, augment=splits.augment)


def _first_difference(ours: tuple[str, ...], theirs: tuple[str, ...]) -> str:
    for label, (our, their) in enumerate(zip(ours, theirs, strict=False)):
        if our != their:
            return f"class {label} is {our!r} in one and {their!r} in the other"
    return f"{len(ours)} in one and {len(theirs)} in the other"

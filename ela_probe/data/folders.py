"""Image files in a folder for each class: ImageFolder's layout, and ImageNet's."""

from collections.abc import Sequence
from pathlib import Path

from ela_probe.data.image_stores import FileImages, ImageNetFiles
from ela_probe.data.splits import Splits, first_difference
from ela_probe.errors import DataError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def read_folder(root: Path, *, image_size: int) -> Splits:
    """ROOT/train/CLASS/IMAGE, and the same under test/, val/ or both. Raises DataError."""
    if not (root / "train").is_dir():
        raise DataError(
            f"{root / 'train'} is not a folder; expected {root}/train/CLASS/IMAGE and the same "
            "under val/ or test/"
        )
    held_out = [name for name in ("test", "val") if (root / name).is_dir()]
    if not held_out:
        raise DataError(f"{root} has neither test/ nor val/; expected one of them beside train/")
    classes, found = _files(root, ("train", *held_out))
    images = {split: FileImages(files, image_size=image_size) for split, files in found.items()}
    return Splits(
        train=images["train"],
        test=images[held_out[0]],
        val=images["val"] if len(held_out) == 2 else None,
        classes=classes,
        augment="crop-flip",
    )


def read_imagenet(root: Path, *, image_size: int) -> Splits:
    """ROOT/train and ROOT/val with a folder for each class, as torchvision's ImageNet unpacks them.

    Raises:
        DataError: a folder is missing, or has no images.
    """
    if not (root / "train").is_dir() or not (root / "val").is_dir():
        archives = sorted(path.name for path in root.glob("ILSVRC2012_*.tar*"))
        unpacked = (
            f"; unpack {', '.join(archives)} with torchvision.datasets.ImageNet({str(root)!r}, "
            "split) for the splits 'train' and 'val'"
            if archives
            else ""
        )
        raise DataError(
            f"{root} lacks train/ or val/; expected {root}/train/CLASS/IMAGE and the same under "
            f"val/{unpacked}"
        )
    classes, found = _files(root, ("train", "val"))
    images = {split: ImageNetFiles(files, image_size=image_size) for split, files in found.items()}
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
    """The class names, and for each split its image files with their labels."""
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
                f"{folder} contains no images; expected {folder}/CLASS/IMAGE with an extension of "
                f"{', '.join(IMG_EXTENSIONS)}"
            )
        first = first or classes
        if classes != first:
            raise DataError(
                f"class folders differ between {root / splits[0]} and {folder}: "
                f"{first_difference(first, classes)}"
            )
        found[split] = files
    return first, found

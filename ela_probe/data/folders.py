"""Image files in a folder for each class: ImageFolder's layout, and ImageNet's.

Hidden files and folders are ignored, among them macOS's `._` files and Jupyter's
`.ipynb_checkpoints`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ela_probe.data.image_stores import FileImages, ImageNetFiles
from ela_probe.data.labels import class_names
from ela_probe.data.source_files import imagenet_folders, split_folders
from ela_probe.data.splits import Splits, first_difference, held_out
from ela_probe.errors import DataError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

LabelledFiles = list[tuple[str, int]]


def read_folder(root: Path, *, image_size: int) -> Splits:
    """ROOT/train/CLASS/IMAGE, and the same under test/, val/ (or valid/), or both.

    Raises:
        DataError: a folder is missing or has no images, or class folders differ or can't be named.
    """
    folders = split_folders(root)
    classes, files = _labelled_files(folders)
    images = {split: FileImages(files[split], image_size=image_size) for split in folders}
    test, val = held_out(folders)
    return Splits(
        train=images["train"],
        test=images[test],
        val=None if val is None else images[val],
        classes=classes,
        augment="crop-flip",
    )


def read_imagenet(root: Path, *, image_size: int) -> Splits:
    """ROOT/train and ROOT/val with a folder for each class, as torchvision's ImageNet unpacks them.

    Raises:
        DataError: as in `read_folder`.
    """
    folders = imagenet_folders(root)
    classes, files = _labelled_files(folders)
    return Splits(
        train=ImageNetFiles(files["train"], image_size=image_size),
        test=ImageNetFiles(files["val"], image_size=image_size),
        classes=classes,
        augment="resized-crop-flip",
        normalisation=(IMAGENET_MEAN, IMAGENET_STD),
    )


def _labelled_files(
    folders: Mapping[str, Path],
) -> tuple[tuple[str, ...], dict[str, LabelledFiles]]:
    """The class names, and the image files of each split with their labels."""
    train = folders["train"]
    classes: tuple[str, ...] = ()
    files: dict[str, LabelledFiles] = {}
    for split, folder in folders.items():
        found = _visible_folders(folder)
        files[split] = _image_files(folder, found)
        classes = classes or class_names(found, str(folder))
        if found != classes:
            raise DataError(
                f"class folders differ between {train} and {folder}: "
                f"{first_difference(classes, found)}; expected the same in both"
            )
    return classes, files


def _image_files(folder: Path, classes: Sequence[str]) -> LabelledFiles:
    """The image files under FOLDER/CLASS, sorted, with the position of their class as label."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    def is_image(path: str) -> bool:
        return path.lower().endswith(IMG_EXTENSIONS) and not _is_hidden(
            Path(path).relative_to(folder)
        )

    labels = {name: label for label, name in enumerate(classes)}
    files: LabelledFiles = []
    if classes:
        files = make_dataset(folder, labels, is_valid_file=is_image, allow_empty=True)
    if not files:
        flat = any(is_image(str(entry)) for entry in folder.iterdir())
        problem = "has images, but no class folders" if flat else "contains no images"
        raise DataError(
            f"{folder} {problem}; expected {folder}/CLASS/IMAGE with an extension of "
            f"{', '.join(IMG_EXTENSIONS)}"
        )
    return files


def _visible_folders(folder: Path) -> tuple[str, ...]:
    try:
        entries = [entry for entry in folder.iterdir() if entry.is_dir()]
    except OSError as error:
        raise DataError(
            f"{folder} can't be read ({error.strerror}); check its permissions"
        ) from error
    return tuple(sorted(entry.name for entry in entries if not _is_hidden(Path(entry.name))))


def _is_hidden(path: Path) -> bool:
    """Whether a part of a relative path is hidden, or is what macOS adds to archives."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)

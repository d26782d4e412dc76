"""The files and folders of a source, looked for before anything is read. It imports no torch."""

from collections.abc import Mapping
from pathlib import Path

from ela_probe.data.source_names import absolute_root, absolute_source, npz_prefix_in
from ela_probe.errors import DataError

DEFAULT_ROOT = "data"  # torchvision's convention: a folder in the working directory
SPLITS = ("train", "val", "test")
SPLIT_FOLDERS = {"val": ("val", "valid", "validation"), "test": ("test",)}


def check_source(source: str, *, root: str | Path | None = None, download: bool = False) -> None:
    """Raise DataError where a source is unknown, or a file or folder of it does not exist.

    Args:
        source: as a user types it: `npz:PREFIX`, `cifar10`, ...
        root: folder of the torchvision data sets.
        download: whether these may be missing.
    """
    kind, _, path = absolute_source(source).partition(":")
    if kind == "npz":
        npz_files(path)
    elif kind == "folder":
        split_folders(Path(path))
    elif kind == "imagenet":
        imagenet_folders(Path(path))
    elif kind == "text":
        check_text(Path(path))
    elif kind == "coco":
        coco_pairs(path)
    elif kind == "audio":
        audio_files(path)
    elif kind != "digits" and not download and not torchvision_folder(root).is_dir():
        raise DataError(
            f"{kind} is looked for in {torchvision_folder(root)}, which is no folder; point "
            "--data-root at the folder that torchvision downloaded it to, or add --download"
        )


def torchvision_folder(root: str | Path | None) -> Path:
    """The folder of the torchvision data sets, absolute."""
    return Path(absolute_root(root or DEFAULT_ROOT))


def npz_files(path: str) -> Path | Mapping[str, Path]:
    """PATH or PATH.npz, which has all splits; else PATH-train.npz and so on, by split.

    Raises:
        DataError: there is no such file, or one for training or for testing is missing.
    """
    by_split = {split: Path(f"{path}-{split}.npz") for split in SPLITS}
    found = {split: file for split, file in by_split.items() if file.is_file()}
    if not found:
        one_file = next((f for f in (Path(path), Path(f"{path}.npz")) if f.is_file()), None)
        if one_file is None:
            raise DataError(_no_npz(path, by_split["train"]))
        return one_file
    if "train" not in found or len(found) == 1:
        raise DataError(_no_npz(path, by_split["test" if "train" in found else "train"]))
    return found


def _no_npz(path: str, file: Path) -> str:
    if Path(path).is_dir():
        prefix = npz_prefix_in(Path(path))
        return f"{path} is a folder, expected .npz files; write npz:{path}/{prefix}"
    if path.endswith(".npz"):
        file, path = Path(path), path.removesuffix(".npz")
    return (
        f"{file} does not exist; expected {path}-train.npz and {path}-test.npz with the arrays "
        f"images and labels, or {path}.npz with train_images, train_labels, test_images and "
        "test_labels"
    )


def split_folders(root: Path) -> dict[str, Path]:
    """The folders of "train" and of "val", "test" or both. Raises DataError: some are missing."""
    if not (root / "train").is_dir():
        split_of_parent = root.is_dir() and (root.parent / "train").is_dir()
        advice = (
            f"write folder:{root.parent}"
            if split_of_parent
            else (f"expected {root}/train/CLASS/IMAGE and the same under test/ or val/")
        )
        raise DataError(f"{_no_train(root)}; {advice}")
    folders = {"train": root / "train"}
    for split, names in SPLIT_FOLDERS.items():
        found = [root / name for name in names if (root / name).is_dir()]
        if len(found) > 1:
            raise DataError(
                f"{root} has both {found[0].name}/ and {found[1].name}/; keep one of them"
            )
        if found:
            folders[split] = found[0]
    if len(folders) == 1:
        raise DataError(f"{root} has neither test/ nor val/; expected one of them beside train/")
    return folders


def imagenet_folders(root: Path) -> dict[str, Path]:
    """ROOT/train and ROOT/val by split. Raises DataError where one of them does not exist."""
    folders = {"train": root / "train", "val": root / "val"}
    if all(folder.is_dir() for folder in folders.values()):
        return folders
    archives = sorted(path.name for path in root.glob("ILSVRC2012_*.tar*"))
    unpack = (
        f"; unpack {', '.join(archives)} with torchvision.datasets.ImageNet({str(root)!r}, "
        "split) for the splits 'train' and 'val'"
        if archives
        else ""
    )
    problem = f"{root} has no folder val/" if folders["train"].is_dir() else _no_train(root)
    raise DataError(f"{problem}; expected {root}/train/CLASS/IMAGE and the same under val/{unpack}")


def _no_train(root: Path) -> str:
    """What is wrong with a folder of images that has no folder train/."""
    if root.is_dir():
        return f"{root} has no folder train/"
    return f"{root} is a file" if root.exists() else f"{root} does not exist"


def check_text(path: Path) -> None:
    """Raise DataError where the file of a text does not exist, or is a folder."""
    if path.is_file():
        return
    problem = "it is a folder" if path.is_dir() else "no such file"
    hint = f"; write folder:{path} for images" if path.is_dir() else ""
    raise DataError(f"cannot read the text {path} ({problem}); expected a plain text file{hint}")


def coco_pairs(path: str) -> list[tuple[Path, Path]]:
    """The folders of images and the files of annotations in IMAGES,ANNOTATIONS.json,...

    Raises:
        DataError: they are not one to three pairs, or one of them does not exist.
    """
    parts = [Path(part) for part in path.split(",")]
    if len(parts) not in (2, 4, 6):
        raise DataError(
            f"coco:{path} names {len(parts)} paths; expected a folder of images and a file of "
            "annotations, coco:IMAGES,ANNOTATIONS.json, and the same again for validation and for "
            "testing"
        )
    pairs = list(zip(parts[::2], parts[1::2], strict=True))
    for folder, file in pairs:
        if not folder.is_dir():
            what = "is a file" if folder.is_file() else "does not exist"
            raise DataError(f"{folder} {what}; expected a folder of images before {file.name}")
        if not file.is_file():
            what = "is a folder" if file.is_dir() else "does not exist"
            raise DataError(f"{file} {what}; expected a JSON file of annotations of {folder}")
    return pairs


def audio_files(path: str) -> dict[str, Path]:
    """PATH-train.npz, PATH-test.npz and, if there is one, PATH-val.npz, by split.

    Raises:
        DataError: one for training or for testing is missing.
    """
    by_split = {split: Path(f"{path}-{split}.npz") for split in SPLITS}
    found = {split: file for split, file in by_split.items() if file.is_file()}
    for split in ("train", "test"):
        if split not in found:
            raise DataError(
                f"{by_split[split]} does not exist; expected {path}-train.npz and {path}-test.npz "
                "with the arrays waveforms and labels"
            )
    return found

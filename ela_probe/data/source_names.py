"""The names of data sources, as a user types them: `cifar10`, `npz:PREFIX`, `folder:DIR`, ..."""

import difflib
import re
from pathlib import Path
from typing import Literal

from ela_probe.errors import DataError
from ela_probe.system.messages import shortened

NAMED_SOURCES = ("digits", "fashion-mnist", "cifar10", "cifar100")
NPZ_SPLIT = r"-(train|val|test)\.npz$"
TEXT_SUFFIXES = (".txt", ".md", ".text")
PATH_SOURCES = {
    "npz": "PREFIX",
    "folder": "DIR",
    "imagenet": "DIR",
    "text": "FILE",
    "coco": "IMAGES,ANNOTATIONS.json",
    "audio": "PREFIX",
}

Task = Literal["images", "tokens", "detection", "audio"]


def task_of(source: str) -> Task:
    """What models for a source do: classify images or sounds, predict tokens, or find objects."""
    tasks: dict[str, Task] = {"text": "tokens", "coco": "detection", "audio": "audio"}
    return tasks.get(source.partition(":")[0], "images")


def absolute_source(source: str) -> str:
    """The source with its path made absolute (`~` expanded).

    Raises:
        DataError: the source is unknown, or its path is missing or not valid UTF-8. The message
            says what to write where that can be guessed.
    """
    kind, colon, path = source.partition(":")
    if kind in NAMED_SOURCES and not colon:
        return source
    if kind not in PATH_SOURCES:
        raise DataError(_unknown(source))
    if not path:
        raise DataError(f"data source {source!r} has no path; write {kind}:{PATH_SOURCES[kind]}")
    parts = path.split(",") if kind == "coco" else [path]
    for part in parts:
        _check_place(source, Path(part).expanduser())
    absolute = ",".join(str(Path(part).expanduser().absolute()) for part in parts)
    try:
        absolute.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"the path in the data source {source!r} is not valid UTF-8; rename it, or use a link"
        ) from None
    return f"{kind}:{absolute}"


def _check_place(source: str, path: Path) -> None:
    """Raise DataError where the system refuses to look for a path: too long, not permitted."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return  # who opens the source says what is missing
    except (OSError, ValueError) as error:  # ValueError: a NUL in it
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"cannot read the data source {shortened(source)!r}: {reason}; expected one that can "
            "be read"
        ) from error


def _unknown(source: str) -> str:
    """What is wrong with a source of no known kind, and what to write instead."""
    path = Path(source).expanduser()
    _check_place(source, path)
    if path.is_dir():
        return f"data source {source!r} is a folder; write {_folder_source(source, path)}"
    if path.is_file():
        return f"data source {source!r} is a file; write {_file_source(source, path)}"
    if Path(f"{path}-train.npz").is_file() or Path(f"{path}.npz").is_file():
        return f"data source {source!r} lacks its kind; write npz:{source}"
    if path.suffix in (".npz", *TEXT_SUFFIXES):
        return (
            f"data source {source!r} lacks its kind, and no such file exists; write "
            f"{_file_source(source, path)}"
        )
    known = (*NAMED_SOURCES, *(f"{kind}:{path}" for kind, path in PATH_SOURCES.items()))
    names = {name.partition(":")[0]: name for name in known}
    near = difflib.get_close_matches(source.partition(":")[0].lower(), names, n=1, cutoff=0.5)
    hint = f"did you mean {names[near[0]]!r}? " if near else ""
    return f"unknown data source {shortened(source)!r}: {hint}expected one of {', '.join(known)}"


def _folder_source(source: str, path: Path) -> str:
    if (path / "train").is_dir():
        return f"folder:{source}, or imagenet:{source} for ImageNet"
    if (path.parent / "train").is_dir():
        return f"folder:{path.parent}"
    if any(path.glob("*.npz")):
        return f"npz:{source}/{npz_prefix_in(path)}"
    return f"folder:{source}; it needs {source}/train/CLASS/IMAGE and the same under test/ or val/"


def _file_source(source: str, path: Path) -> str:
    if path.suffix == ".npz":
        return f"npz:{re.sub(NPZ_SPLIT, '', source)}"
    if path.suffix in TEXT_SUFFIXES:
        return f"text:{source}"
    return f"text:{source} for text; images need folder:DIR or npz:PREFIX"


def npz_prefix_in(folder: Path) -> str:
    """PREFIX of the first .npz file in a folder, as in npz:PREFIX; "PREFIX" if there is none."""
    first = min((entry.name for entry in folder.glob("*.npz")), default="PREFIX.npz")
    return re.sub(NPZ_SPLIT, "", first).removesuffix(".npz")


def absolute_root(root: str | Path) -> str:
    """`root` as an absolute path, `~` expanded."""
    return str(Path(root).expanduser().absolute())

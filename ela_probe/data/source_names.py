"""The names of data sources, as a user types them: `cifar10`, `npz:PREFIX`, `folder:DIR`, ..."""

import difflib
from pathlib import Path

from ela_probe.errors import DataError

NAMED_SOURCES = ("digits", "fashion-mnist", "cifar10", "cifar100")
PATH_SOURCES = {"npz": "PREFIX", "folder": "DIR", "imagenet": "DIR", "text": "FILE"}


def absolute_source(source: str) -> str:
    """The source with its path made absolute (`~` expanded).

    Raises:
        DataError: the source is unknown, or its path is missing.
    """
    kind, colon, path = source.partition(":")
    if kind in NAMED_SOURCES and not colon:
        return source
    if kind in PATH_SOURCES:
        if not path:
            raise DataError(
                f"data source {source!r} has no path; write {kind}:{PATH_SOURCES[kind]}"
            )
        return f"{kind}:{Path(path).expanduser().absolute()}"
    known = (*NAMED_SOURCES, *(f"{kind}:{path}" for kind, path in PATH_SOURCES.items()))
    names = {name.partition(":")[0]: name for name in known}
    near = difflib.get_close_matches(kind, names, n=1, cutoff=0.5)
    hint = f"did you mean {names[near[0]]!r}? " if near else ""
    raise DataError(f"unknown data source {source!r}: {hint}expected one of {', '.join(known)}")


def absolute_root(root: str | Path) -> str:
    """`root` as an absolute path, `~` expanded."""
    return str(Path(root).expanduser().absolute())

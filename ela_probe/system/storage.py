"""Writing results: to a temporary name, synced, then renamed, so that no file is half written."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ela_probe.errors import OutputError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`, and rename it to `path` on success.

    After any error the temporary file is removed, and a file at `path` stays as it was.

    Raises:
        OutputError: `path` is a folder, its folder can't be written to, or the disk is full.
    """
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; expected the name of a file")
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}; "
            "choose another place with -o, or free some space"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, and put it in the place of `path` on success.

    After any error the temporary folder is removed, and a folder at `path` stays as it was.

    Raises:
        OutputError: `path` is a file, the folder around it can't be written to, or the disk is
            full.
    """
    path = Path(path)
    if path.is_file():
        raise OutputError(f"cannot write {path}: it is a file; expected the name of a folder")
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        yield temporary
        for file in temporary.iterdir():
            with open(file, "rb+") as written:
                os.fsync(written.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        if path.exists():
            earlier = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
            os.replace(path, earlier)
            os.replace(temporary, path)
            shutil.rmtree(earlier, ignore_errors=True)
        else:
            os.replace(temporary, path)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}; "
            "choose another place with -o, or free some space"
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` as UTF-8. Raises OutputError."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: str | Path, value: Any) -> Path:
    """Write `value` as indented JSON, which has no NaN. Raises OutputError, ValueError (NaN)."""
    return write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def output_directory(path: str | Path) -> Path:
    """Create the folder `path`, and check that it can be written to before long work starts.

    Raises:
        OutputError: it is a file, or can't be created or written to.
    """
    path = Path(path)
    if path.is_file():
        raise OutputError(f"cannot write into {path}: it is a file; expected a folder")
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OutputError(
            f"cannot write into {path}: {error.strerror or error}; choose another folder with -o"
        ) from error
    return path

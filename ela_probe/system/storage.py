"""Writing results: to a temporary name, synced, then renamed, so that no file is half written."""

import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ela_probe.errors import OutputError

ABANDONED_SECONDS = 3600


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`, and rename it to `path` on success.

    After any error the temporary file is removed, and a file at `path` stays as it was. A link is
    followed: the file that it leads to is replaced. What is written to `-` or /dev/stdout goes to
    the standard output.

    Raises:
        OutputError: `path` is no regular file, its folder can't be written to, or the disk is full.
    """
    if is_stdout(path):
        with _written_to_stdout(Path(path)) as written:
            yield written
        return
    refuse_irregular(path)
    path = Path(os.path.realpath(path)) if Path(path).is_symlink() else Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
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
        raise _cannot_write(path, error) from error
    finally:
        if temporary is not None:
            with suppress(OSError):  # the folder became read-only
                temporary.unlink(missing_ok=True)


def is_stdout(path: str | Path) -> bool:
    """Whether an output is the standard output: `-`, or one of the names that Unix gives to it."""
    return str(path) in ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


def refuse_irregular(path: str | Path) -> None:
    """Raise OutputError where something else than a regular file lies in an output's place."""
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; expected the name of a file")
    if path.exists() and not path.is_file():
        raise OutputError(
            f"cannot write {path}: it is a pipe or a device; expected the name of a file, or - for "
            "the standard output"
        )


@contextmanager
def _written_to_stdout(path: Path) -> Iterator[Path]:
    """Yield a temporary path, and copy what is written there to the standard output on success."""
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / path.name
        yield temporary
        try:
            sys.stdout.flush()
            with temporary.open("rb") as written:
                shutil.copyfileobj(written, sys.stdout.buffer)
            sys.stdout.buffer.flush()
        except BrokenPipeError:  # the reader went away: no error of ours
            raise
        except OSError as error:
            raise OutputError(
                f"cannot write to the standard output: {error.strerror or error}"
            ) from error


def _remove_abandoned(path: Path) -> None:
    """Remove the temporary files and folders of `path` that killed processes have left.

    One that has not been written to for ABANDONED_SECONDS belongs to no running process.
    """
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}\.tmp")
    found: list[str] = []
    with suppress(OSError):  # the folder can't be listed
        found = [name for name in os.listdir(path.parent) if pattern.fullmatch(name)]
    for left in (path.parent / name for name in found):
        with suppress(OSError):  # another process removes it too
            parts = [left, *left.iterdir()] if left.is_dir() else [left]
            if max(part.stat().st_mtime for part in parts) > time.time() - ABANDONED_SECONDS:
                continue
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()


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
        _remove_abandoned(path)
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
            try:
                os.replace(temporary, path)
            except OSError:
                with suppress(OSError):  # the folder became read-only
                    os.replace(earlier, path)
                raise
            shutil.rmtree(earlier, ignore_errors=True)
        else:
            os.replace(temporary, path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _cannot_write(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"cannot write {path}: {error.strerror or error}; choose another place with -o, or free "
        "some space"
    )


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write `content`. Raises OutputError."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` as UTF-8. Raises OutputError."""
    return write_bytes(path, text.encode())


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

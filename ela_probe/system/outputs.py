"""Outputs of commands: what exists already is kept under a number, and no input is replaced.

`plan.json` becomes `plan-1.json`, or the first number that is free, when another `plan.json` is
written. The earlier results in a folder `analysis` move to a folder `analysis-1` beside it.
"""

import filecmp
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from ela_probe.errors import CheckpointError, OutputError
from ela_probe.system.storage import is_stdout, refuse_irregular


def refuse_inputs(outputs: Iterable[Path], inputs: Iterable[Path | None]) -> None:
    """Raise OutputError where an output is one of the inputs, also by a link or another path."""
    given = [path for path in inputs if path is not None]
    for output in outputs:
        for path in given:
            if _is_same(output, path):
                raise OutputError(
                    f"the output {output} is the input {path}, which it would replace; choose "
                    "another name with -o"
                )


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one of them does not exist
        return one.resolve() == other.resolve()


def refuse_folder(output: Path) -> None:
    """Raise OutputError where no regular file lies in the place of an output file."""
    if output.is_dir():
        raise OutputError(
            f"got the folder {output}, expected a file to write; add a name to it with -o"
        )
    if not is_stdout(output):
        refuse_irregular(output)


def refuse_other_folder(output: Path) -> None:
    """Raise OutputError where something else than a model's directory lies in its place."""
    if output.exists() and not (output / "config.json").is_file():
        what = "folder" if output.is_dir() else "file"
        raise OutputError(
            f"got the {what} {output}, expected a directory to write, a new one or a model's; "
            "choose another name with -o"
        )


def check_resumable(state: Path) -> None:
    """Raise CheckpointError where the state that --resume continues from does not exist."""
    if not state.is_file():
        raise CheckpointError(f"nothing to resume: {state} does not exist; start without --resume")


class Kept:
    """Says, after a block, where earlier results are kept: nowhere where they did not change."""

    path: Path | None = None


@contextmanager
def keep_file(path: Path) -> Iterator[Kept]:
    """Keep an existing file under a number while the block replaces it.

    The block must write to a temporary name and rename it, as `storage.replacing` does. A file
    that the block leaves alone, or writes with the same content, gets no numbered copy.

    Raises:
        OutputError: the copy can't be written, or a folder is in the way.
    """
    refuse_folder(path)
    kept = Kept()
    if is_stdout(path) or not path.exists():
        yield kept
        return
    copy = _numbered_copy(path)
    try:
        yield kept
    except BaseException:
        if path.exists() and _is_same(path, copy):
            with suppress(OSError):  # the folder became read-only: the first error counts
                copy.unlink()
        raise
    if path.exists() and filecmp.cmp(path, copy, shallow=False):
        copy.unlink()
    else:
        kept.path = copy


@contextmanager
def keep_directory(folder: Path) -> Iterator[Kept]:
    """Rename an existing folder to a numbered one while the block writes another in its place.

    Where the block ends in an error, it gets its name back.

    Raises:
        OutputError: it can't be renamed.
    """
    kept = Kept()
    numbered = _numbered_folder(folder)
    try:
        os.replace(folder, numbered)
    except OSError as error:
        with suppress(OSError):
            numbered.rmdir()
        raise _cannot_keep(folder, error) from error
    kept.path = numbered
    try:
        yield kept
    except BaseException:
        if not folder.exists():
            with suppress(OSError):
                os.replace(numbered, folder)
                kept.path = None
        raise


@contextmanager
def keep_folder(folder: Path, names: Iterable[str]) -> Iterator[Kept]:
    """Move earlier results in a folder to a numbered folder while the block writes new ones.

    Where the block ends in an error and has written nothing, they move back.

    Args:
        folder: that the block writes into.
        names: files and folders in it that the block writes; others stay where they are.

    Raises:
        OutputError: they can't be moved.
    """
    kept = Kept()
    existing = [name for name in names if (folder / name).exists()]
    if not existing:
        yield kept
        return
    numbered = _numbered_folder(folder)
    _move(existing, folder, numbered)
    kept.path = numbered
    try:
        yield kept
    except BaseException:
        if not any((folder / name).exists() for name in existing):
            _move(existing, numbered, folder)
            kept.path = None
            with suppress(OSError):
                numbered.rmdir()
        raise


def _numbered_copy(path: Path) -> Path:
    """A copy, or a second name, of a file under the first number that is free."""
    for number in count(1):
        copy = path.with_name(f"{path.stem}-{number}{path.suffix}")
        try:
            os.link(os.path.realpath(path), copy)
            return copy
        except FileExistsError:
            continue
        except OSError:  # the file system has no links
            try:
                with path.open("rb") as source, copy.open("xb") as target:
                    shutil.copyfileobj(source, target)
                return copy
            except FileExistsError:
                continue
            except OSError as error:
                with suppress(OSError):  # in a read-only folder there is no copy
                    copy.unlink(missing_ok=True)
                raise _cannot_keep(path, error) from error
    raise AssertionError


def _numbered_folder(folder: Path) -> Path:
    """A new folder under the first number that is free."""
    place = folder.resolve()  # so that `.` has a name
    for number in count(1):
        numbered = place.with_name(f"{place.name}-{number}")
        try:
            numbered.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise _cannot_keep(folder, error) from error
        return numbered if folder.is_absolute() else Path(os.path.relpath(numbered))
    raise AssertionError


def _move(names: Iterable[str], source: Path, target: Path) -> None:
    try:
        for name in names:
            os.rename(source / name, target / name)
    except OSError as error:
        raise _cannot_keep(source, error) from error


def _cannot_keep(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"cannot keep the earlier {path} under a number ({error.strerror or error}); choose "
        "another place with -o"
    )

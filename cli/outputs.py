"""What a command does before it writes: the one rule for files that exist (docs/guide.md)."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ela_probe.errors import OutputError
from ela_probe.system.folder_lock import only_writer
from ela_probe.system.messages import quoted
from ela_probe.system.outputs import (
    Kept,
    keep_directory,
    keep_file,
    keep_folder,
    refuse_folder,
    refuse_inputs,
    refuse_other_folder,
)
from ela_probe.system.storage import is_stdout, output_directory

from . import console
from .inputs import PRETRAINED

# The state comes first: where moving them is interrupted, what is left can't be resumed.
RUN_FILES = (
    "resume.ckpt", "best.pt", "last.pt", ".next-best.pt", ".next-last.pt", "metrics.csv", "ela.csv",
    "plan.json", "tensorboard", "wandb", "mlruns",
)  # fmt: skip


def beside(checkpoint: Path, word: str, suffix: str | None = None) -> Path:
    """The default output next to a checkpoint: its name, `-word`, and its suffix or another one.

    The name of a directory has no suffix.
    """
    is_folder = checkpoint.is_dir()
    stem = checkpoint.name if is_folder else checkpoint.stem
    own = "" if is_folder else checkpoint.suffix
    return checkpoint.with_name(f"{stem}-{word}{own if suffix is None else suffix}")


def as_argument(checkpoint: Path) -> str:
    """A checkpoint as a command line names it, quoted where needed."""
    return quoted(f"{PRETRAINED}{checkpoint}" if checkpoint.is_dir() else checkpoint)


def check_output(
    output: Path, inputs: Iterable[Path | None], *, made_from: Path | None = None
) -> None:
    """Raise OutputError where the output is an input or a folder, before any work is done.

    made_from: a checkpoint; where it is a directory of transformers, so is the output.
    """
    if made_from is not None and is_stdout(output):
        raise OutputError(
            f"got -o {output}, expected the name of a file: a checkpoint is not written to the "
            "standard output"
        )
    if made_from is not None and made_from.is_dir():
        refuse_other_folder(output)
    else:
        refuse_folder(output)
    refuse_inputs([output], inputs)


def check_output_folder(folder: Path, names: Iterable[str], inputs: Iterable[Path | None]) -> None:
    """Raise OutputError where a result in the output folder would replace an input."""
    refuse_inputs([folder / name for name in names], inputs)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A block that writes one file or directory. A different one of that name is kept.

    It is kept under a number.
    """
    if not console.is_first_process():
        yield
        return
    with keep_directory(path) if path.is_dir() else keep_file(path) as kept:
        yield
    if kept.path is not None:
        console.print_note(f"note: the earlier {path} is kept as {kept.path}")
    if is_stdout(path):
        sys.stdout = sys.stderr  # the output has the standard output for itself; see `entry.main`


@contextmanager
def writing_folder(folder: Path, names: Iterable[str]) -> Iterator[None]:
    """A block that writes results into a folder. Earlier ones are kept in a numbered folder.

    Where the block ends in an error and has made an empty folder, that is removed.

    Args:
        folder: created if it does not exist.
        names: of the results that are moved; none where the block goes on with them.

    Raises:
        OutputError: another process is in such a block for the folder, or it can't be written to.
    """
    if not console.is_first_process():
        yield
        return
    kept, existed = Kept(), folder.exists()
    try:
        with only_writer(output_directory(folder)), keep_folder(folder, names) as kept:
            yield
    except BaseException:
        if not existed:
            with suppress(OSError):  # it is not empty, or was never made
                folder.rmdir()
        raise
    finally:
        if kept.path is not None:
            console.print_note(f"note: the earlier results in {folder} are kept in {kept.path}")

"""The folder of a run: its weights belong to the state that it is resumed from, or it is refused.

At the end of an epoch `best.pt` and `last.pt` are written under other names first. `resume.ckpt`
holds their SHA-256. Only when it is in place, they get their own names. After an interruption
between two writes, resuming finishes the renaming, or removes what belongs to no state.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from ela_probe.errors import CheckpointError, OutputError
from ela_probe.system.storage import replacing

BEST, LAST, RESUME, LOG = "best.pt", "last.pt", "resume.ckpt", "metrics.csv"
ELA_LOG = "ela.csv"
WEIGHTS = (BEST, LAST)
NEXT = ".next-"  # begins the names of weights whose state is not written yet


class RunFolder:
    """Writes the weights and the state of an epoch so that they can't be of different epochs.

    Args:
        path: the folder, which exists.
        digests: SHA-256 of the weights, by file name, that the state to resume from was written
            with; empty for a new run.
    """

    def __init__(self, path: Path, digests: Mapping[str, str]) -> None:
        self.path = path
        self.digests = dict(digests)
        self._new_state: tuple[int, int] | None = None  # device and inode

    def begin_epoch(self) -> None:
        """Call it before the files of another epoch are written."""
        self._new_state = None

    def has_new_state(self) -> bool:
        """Whether the state of the epoch that was begun last is in place."""
        state = self.path / RESUME
        return state.exists() and _identity(state) == self._new_state

    def next(self, name: str) -> Path:
        """Where the weights of this epoch are written; `weights_written` comes after."""
        return self.path / f"{NEXT}{name}"

    def weights_written(self, name: str) -> None:
        """Note the digest of what was written, for the state."""
        self.digests[name] = _sha256(self.next(name))

    @contextmanager
    def new_state(self) -> Iterator[Path]:
        """A block that writes the state to the path it gets. The weights get their names after.

        Raises:
            OutputError: the folder can't be written to.
        """
        with replacing(self.path / RESUME) as temporary:
            yield temporary
            self._new_state = _identity(temporary)
        self.settle()

    def settle(self) -> None:
        """Give the weights that belong to the state their names, and remove others.

        Raises:
            OutputError: the folder can't be written to.
        """
        for name in WEIGHTS:
            waiting = self.next(name)
            if not waiting.exists():
                continue
            try:
                if _sha256(waiting) == self.digests.get(name):
                    os.replace(waiting, self.path / name)
                else:
                    waiting.unlink()
            except OSError as error:
                raise OutputError(
                    f"cannot write {self.path / name}: {error.strerror or error}; --resume "
                    "finishes it where the folder can be written to again"
                ) from error

    def abandon_epoch(self) -> None:
        """After an error or an interrupt: remove weights whose state is not in place."""
        if self.has_new_state():
            with suppress(OutputError):  # of the error that led here; --resume does it
                self.settle()
            return
        for name in WEIGHTS:
            with suppress(OSError):  # the folder became read-only
                self.next(name).unlink(missing_ok=True)


def check_whole(folder: Path, digests: Mapping[str, str]) -> None:
    """Raise CheckpointError where the weights are not those that the state was written with.

    digests: as in the state; empty in one that an older version wrote, which is not compared.
    """
    for name, digest in digests.items():
        # Another process of the run may rename the first to the second meanwhile.
        paths = (folder / f"{NEXT}{name}", folder / name)
        if not any(_sha256(path) == digest for path in paths):
            what = "is not the file" if (folder / name).exists() else "is missing: it is the file"
            raise CheckpointError(
                f"the run in {folder} is not whole: {name} {what} that {RESUME} was written with "
                "(it was moved or changed, or another run wrote into the folder); put it back, or "
                "start again without --resume"
            )


def _identity(path: Path) -> tuple[int, int]:
    """What stays the same of a file when it is renamed."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _sha256(path: Path) -> str:
    """The digest of a file's content; empty where there is none."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
    except FileNotFoundError:
        return ""
    return digest.hexdigest()

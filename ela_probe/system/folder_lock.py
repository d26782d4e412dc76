"""One process at a time writes results into a folder."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ela_probe.errors import OutputError

PATIENCE = 10.0  # seconds; workers of a killed process end within 5, and hold its lock until then


@contextmanager
def only_writer(folder: Path, *, patience: float = PATIENCE) -> Iterator[None]:
    """A block during which no other process is in such a block for the same folder.

    The lock is the kernel's and ends with the process, however that ends. Where the file system or
    the operating system has none, nothing is checked.

    Args:
        folder: it exists.
        patience: seconds to wait for another process.

    Raises:
        OutputError: another process writes into the folder.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # not readable: it may still be written to
        yield
        return
    try:
        end = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise OutputError(
                        f"another process is writing into {folder}; wait until it ends, or choose "
                        "another folder with -o"
                    ) from None
                time.sleep(0.1)
            except OSError:
                break
        yield
    finally:
        with suppress(OSError):  # also where a forked worker still has the folder open
            fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)

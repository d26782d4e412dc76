"""What the machine refuses or ends: memory, workers that load batches, a termination signal."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
LOST_WORKER = "DataLoader worker"


def explained(error: Exception) -> str | None:
    """One line for an error of memory or of a worker; None for any other."""
    text = str(error)
    is_torchs = isinstance(error, RuntimeError)  # also torch.OutOfMemoryError
    if isinstance(error, MemoryError) or (
        is_torchs and any(words in text for words in OUT_OF_MEMORY)
    ):
        return (
            "out of memory: a batch and what is computed from it don't fit; choose a smaller batch "
            "size with --batch-size, smaller images, or another device"
        )
    if is_torchs and text.startswith(LOST_WORKER) and "Caught" not in text:
        return (
            "a process that loads batches ended before its time: the system may have ended it for "
            "want of memory; choose fewer with --workers (0: none), or a smaller --batch-size"
        )
    return None


class Interrupted(Exception):
    """A KeyboardInterrupt with its message, which Typer would answer itself, without it."""


@contextmanager
def interrupt_as_error() -> Iterator[None]:
    """A block in which Ctrl-C and SIGTERM raise Interrupted."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(str(error)) from error


class Terminated(KeyboardInterrupt):
    """SIGTERM came. It is cleaned up after, and a run can be resumed, as after Ctrl-C."""


@contextmanager
def terminated_like_interrupted() -> Iterator[list[int]]:
    """A block in which SIGTERM raises Terminated; it gets the list of signals that came.

    Only where the main thread runs it, and nobody else handles the signal.
    """
    received: list[int] = []
    owner = os.getpid()

    def terminate(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a forked process
            os._exit(128 + number)
        received.append(number)
        raise Terminated("terminated")

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield received
        return
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

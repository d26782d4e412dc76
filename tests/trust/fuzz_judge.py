"""What a reader made of a folder: it was accepted or refused, which is right, or it went wrong."""

import traceback
from collections.abc import Callable
from pathlib import Path

from ela_probe.errors import ElaProbeError

LONGEST = 1500  # characters of a message


def judge(read: Callable[[Path], object], folder: Path) -> tuple[str, str]:
    """Read a folder. Returns "accepted", "refused" or "wrong", and what was wrong."""
    try:
        read(folder)
    except ElaProbeError as error:
        return _judged(error)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        return "wrong", _where(error)
    return "accepted", ""


def _judged(error: BaseException) -> tuple[str, str]:
    message = str(error)
    if "weights_only" in message:
        return "wrong", f"advises to set weights_only: {message[:200]!r}"
    if len(message) > LONGEST:
        return "wrong", f"a message of {len(message)} characters: {message[:200]!r}"
    if not message.replace("\n", "").isprintable():
        return "wrong", f"a message that is not printable: {message[:200]!r}"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or "allocate memory" in str(cause):
            return "wrong", f"memory: {message[:200]}"
        cause = cause.__cause__ or cause.__context__
    return "refused", ""


def _where(error: BaseException) -> str:
    """An error's class, the last place in this package and its text."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "ela_probe" in f.filename or "/cli/" in f.filename]
    place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "the test"
    return f"{type(error).__name__} at {place}: {str(error)[:160]!r}"

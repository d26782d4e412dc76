"""The one layer through which files of other people are read.

A file is a regular one, of bounded size. What a library raises on its bytes, of whatever class,
becomes one error of ours in `refusing`: no reader lists the errors of libraries.
"""

import codecs
import json
import pickle
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from ela_probe.errors import ElaProbeError, printable
from ela_probe.system.messages import class_and_first_line, shortened
from ela_probe.system.validation import explain

LARGEST_DOCUMENT = 2**27  # bytes
MOST_VALUES = 2**21  # of a document; a wrong one takes about 1,000 bytes
LARGEST_BY_HAND = 2**20  # bytes of a document that people write
DEEPEST = 50  # brackets in brackets of such a document

# The longer marks first: that of UTF-32 starts with that of UTF-16.
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@contextmanager
def refusing(
    error: type[ElaProbeError],
    problem: str,
    advice: str = "",
    *,
    model: type[BaseModel] | None = None,
    limit: int | None = 3,
) -> Iterator[None]:
    """A block in which libraries read foreign bytes: whatever they raise becomes one error.

    Our own errors pass. So do KeyboardInterrupt and SystemExit. Everything else, also what is no
    Exception (a panic of a library in Rust), is raised as `PROBLEM: REASON; ADVICE`.

    Args:
        error: the class to raise.
        problem: what is wrong, such as "the analysis in runs/a is damaged".
        advice: what to do, or what is expected.
        model, limit: for `explain`, where a document is validated.

    Raises:
        ElaProbeError: of class `error`.
    """
    try:
        yield
    except (ElaProbeError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as cause:
        reason = (
            explain(cause, model, limit=limit)
            if isinstance(cause, ValidationError)
            else _reason(cause)
        )
        raise error(f"{problem}: {reason}{advice and f'; {advice}'}") from cause


def _reason(error: BaseException) -> str:
    """Why a library could not read something, in at most 120 characters of its words."""
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
        return f"it holds pickled Python objects, which run code on loading: {_global(str(error))}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    mark = getattr(error, "problem_mark", None)  # of YAML
    if mark is not None:
        return shortened(f"line {mark.line + 1}: {printable(str(getattr(error, 'problem', '')))}")
    words = class_and_first_line(error)
    if "weights_only" in words:  # advice of PyTorch and Lightning to load pickled objects
        words = type(error).__name__
    return shortened(printable(words))


def _global(message: str) -> str:
    """What an error of PyTorch's unpickler names; its advice to load all the same is left out."""
    named = re.search(r"GLOBAL\s+(\S+)", message)
    return shortened(printable(named[1])) if named else "a pickled object"


def read_document(
    path: str | Path,
    *,
    what: str,
    expected: str,
    error: type[ElaProbeError],
    most: int = LARGEST_DOCUMENT,
) -> str:
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte-order mark.

    PowerShell's `>` writes UTF-16, and some editors put a byte-order mark before UTF-8.

    Args:
        what: names the document in messages, such as "the plan".
        expected: what the file should be, such as "a file that `ela-probe plan` wrote".
        error: the class of the error to raise.
        most: the most bytes that such a file has.

    Raises:
        ElaProbeError: of class `error`: as `read_bytes`, larger than a document is, of more values
            than MOST_VALUES, or not text.
    """
    content = read_bytes(path, what=what, expected=expected, error=error, most=most)
    encoding = next((name for mark, name in BYTE_ORDER_MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as problem:
        raise error(
            f"cannot read {what} {path}: it is not text in {encoding.upper()}; expected {expected}"
        ) from problem
    with refusing(error, f"cannot read {what} {path}", f"expected {expected}"):
        refuse_many(text)
    return text


def read_bytes(
    path: str | Path,
    *,
    what: str,
    expected: str,
    error: type[ElaProbeError],
    most: int | None = None,
) -> bytes:
    """The content of a regular file.

    Args:
        what, expected, error: as in `read_document`.
        most: the most bytes that such a file has.

    Raises:
        ElaProbeError: of class `error`: as `check_regular`, or too large.
    """
    size = check_regular(path, what=what, expected=expected, error=error)
    if most is not None and size > most:
        raise error(
            f"cannot read {what} {path}: it has {size:,} bytes, more than the {most:,} that are "
            f"read; expected {expected}"
        )
    with refusing(error, f"cannot read {what} {path}", f"expected {expected}"):
        return Path(path).read_bytes()


def check_regular(path: str | Path, *, what: str, expected: str, error: type[ElaProbeError]) -> int:
    """The size of a regular file in bytes. A pipe or a device, which may never end, is refused.

    Raises:
        ElaProbeError: of class `error`: no such file, or no regular file.
    """
    path = Path(path)
    try:
        found = path.stat()
    except FileNotFoundError:
        reason = "there is no such file"
    except NotADirectoryError:
        reason = f"{path.parent} is a file, not a folder"
    except (OSError, ValueError) as problem:  # ValueError: a NUL in the path
        reason = getattr(problem, "strerror", None) or str(problem)
    else:
        if stat.S_ISREG(found.st_mode):
            return found.st_size
        is_folder = stat.S_ISDIR(found.st_mode)
        reason = "it is a folder" if is_folder else "it is a pipe or a device, not a file"
    raise error(f"cannot read {what} {path}: {reason}; expected {expected}")


def check_regular_files(folder: Path, *, error: type[ElaProbeError]) -> None:
    """Raise `error` where something in a folder is neither a regular file nor a folder.

    For libraries that open files by themselves.
    """
    for path in folder.iterdir():
        if not path.is_dir():
            check_regular(path, what="the file", expected="a regular file", error=error)


def refuse_many(text: str) -> None:
    """Raise ValueError where a text of JSON, YAML, TOML or CSV has more than MOST_VALUES values."""
    if text.count(",") + text.count("\n") > MOST_VALUES:
        raise ValueError(f"it has more than {MOST_VALUES:,} values")


def refuse_surrogates(value: Any) -> None:
    """Raise UnicodeEncodeError where text in plain values has half a character.

    YAML and JSON have an escape for it, and no file can store it.
    """
    json.dumps(value, ensure_ascii=False, default=str).encode()


def refuse_deep(text: str) -> None:
    """Raise RecursionError where a text has more than DEEPEST brackets in brackets.

    The time of parsers of YAML grows with the square of that number.
    """
    steps = ({"[": 1, "{": 1, "]": -1, "}": -1}.get(character, 0) for character in text)
    if max(accumulate(steps), default=0) > DEEPEST:
        raise RecursionError

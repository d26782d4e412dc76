"""Reading text documents (plans, costs, analyses, comparisons) as people's editors save them."""

import codecs
import stat
from pathlib import Path

from ela_probe.errors import ElaProbeError

LARGEST_DOCUMENT = 2**28
LARGEST_BY_HAND = 2**20  # bytes of a document that people write

# The longer marks first: that of UTF-32 starts with that of UTF-16.
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


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
        ElaProbeError: of class `error`: as `read_bytes`, larger than a document is, or not text.
    """
    content = read_bytes(path, what=what, expected=expected, error=error, most=most)
    encoding = next((name for mark, name in BYTE_ORDER_MARKS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as problem:
        raise error(
            f"cannot read {what} {path}: it is not text in {encoding.upper()}; expected {expected}"
        ) from problem


def read_bytes(
    path: str | Path,
    *,
    what: str,
    expected: str,
    error: type[ElaProbeError],
    most: int | None = None,
) -> bytes:
    """The content of a regular file. A pipe or a device, which may never end, is refused.

    Args:
        what, expected, error: as in `read_document`.
        most: the most bytes that such a file has.

    Raises:
        ElaProbeError: of class `error`: no such file, no regular file, or too large.
    """
    path = Path(path)
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise error(f"cannot read {what} {path}: it is a folder; expected {expected}")
        if not stat.S_ISREG(found.st_mode):
            raise error(
                f"cannot read {what} {path}: it is a pipe or a device, not a file; "
                f"expected {expected}"
            )
        if most is not None and found.st_size > most:
            raise error(
                f"cannot read {what} {path}: it has {found.st_size:,} bytes, more than the "
                f"{most:,} that are read; expected {expected}"
            )
        return path.read_bytes()
    except FileNotFoundError as problem:
        raise error(
            f"cannot read {what} {path}: there is no such file; expected {expected}"
        ) from problem
    except NotADirectoryError as problem:
        raise error(
            f"cannot read {what} {path}: {path.parent} is a file, not a folder; expected {expected}"
        ) from problem
    except OSError as problem:
        reason = problem.strerror or type(problem).__name__
        raise error(f"cannot read {what} {path}: {reason}; expected {expected}") from problem

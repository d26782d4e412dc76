"""What a command prints: tables and messages for people, one JSON document for scripts.

Text is printed verbatim: brackets in a path are no markup. Colour is given by rich's Text.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ela_probe.errors import printable
from ela_probe.system.numbers import readable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

GAP = 3  # blanks between the columns of a table
LEAST_PROSE = 24  # the least width of a column that wraps


def stdout() -> "Console":
    """Rich's console on stdout, as wide as the terminal is now."""
    from rich.console import Console  # takes longer than answering a missing file does

    return Console(highlight=False, markup=False, emoji=False)


def stderr() -> "Console":
    """Rich's console on stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def print_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document on stdout."""
    print(json.dumps(jsonable(document), indent=2, allow_nan=False))


def print_line(text: str) -> None:
    """Print a message on stdout; a long line is not broken, so that paths can be copied."""
    stdout().print(visible(text), soft_wrap=True)


def print_paragraph(text: str) -> None:
    """Print prose on stdout, broken at the width of the terminal."""
    stdout().print(visible(text))


def print_note(text: str) -> None:
    """Print a message on stderr."""
    stderr().print(visible(text), soft_wrap=True)


def is_first_process() -> bool:
    """Whether this process speaks, of several that a launcher or Lightning started."""
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
    return next((os.environ[name] for name in names if name in os.environ), "0") == "0"


def print_table(title: str, columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Print a table, with no cell cut off.

    Columns that do not fit the width of the terminal follow in a second table, which repeats the
    first column.

    Args:
        title: above it.
        columns: their names. `>` before a name aligns it to the right, `~` lets its text wrap.
        rows: cells; a `Text` keeps its style, a number gets four digits.
    """
    from rich import box
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    out = stdout()
    cells = [[_cell(cell) for cell in row] for row in rows]
    names = [visible(column.lstrip(">~")) for column in columns]
    full = [
        max(cell_len(_plain(cell)) for cell in column) for column in zip(names, *cells, strict=True)
    ]
    least = [
        min(width, LEAST_PROSE) if column.startswith("~") else width
        for column, width in zip(columns, full, strict=True)
    ]
    in_file = not out.is_terminal and "COLUMNS" not in os.environ
    limit = _total(full) if in_file else out.width
    if title:
        out.print(Text(visible(title), style="bold"))
    for chosen in _parts(least, limit):
        room = min(limit, _total([full[i] for i in chosen]))
        width = max(room, _total([least[i] for i in chosen]))
        table = Table(width=width, header_style="", box=box.SIMPLE_HEAD)
        for i in chosen:
            table.add_column(
                names[i],
                justify="right" if columns[i].startswith(">") else "left",
                no_wrap=not columns[i].startswith("~"),
                min_width=least[i],
            )
        for row in cells:
            table.add_row(*(row[i] for i in chosen))
        out.print(table, crop=False)


def _parts(widths: Sequence[int], limit: int) -> list[list[int]]:
    """The columns of each table: as many as fit, the first one in all of them."""
    parts = [[0]]
    for i in range(1, len(widths)):
        if _total([widths[j] for j in (*parts[-1], i)]) > limit and len(parts[-1]) > 1:
            parts.append([0])
        parts[-1].append(i)
    return parts


def _total(widths: Sequence[int]) -> int:
    """The width of a table: its columns, what lies between them, and two blanks on each side."""
    return sum(widths) + GAP * (len(widths) - 1) + 4


def visible(text: str) -> str:
    r"""Text whose names can't command a terminal; its own line breaks stay.

    >>> visible("a\x1b[31m")
    'a\ufffd[31m'
    """
    return "\n".join(map(printable, text.split("\n")))


def _cell(cell: Any) -> "str | Text":
    """A cell as it is printed; the style of a `Text` stays."""
    from rich.text import Text

    if isinstance(cell, Text):
        return cell if cell.plain.isprintable() else Text(visible(cell.plain), cell.style)
    return visible(cell if isinstance(cell, str) else cell_text(cell))


def _plain(cell: "str | Text") -> str:
    return cell if isinstance(cell, str) else cell.plain


def cell_text(value: Any) -> str:
    """A number with four digits; a dash for a missing value."""
    if value is None or isinstance(value, float):
        return readable(value, digits=4)
    return f"{value:,}" if isinstance(value, int) else str(value)


def jsonable(value: Any) -> Any:
    """The value in JSON's types: paths become text, NaN and infinity become null."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item") and not isinstance(value, str):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

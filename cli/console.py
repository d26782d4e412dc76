"""What a command prints: tables and messages for people, one JSON document for scripts.

Text is printed verbatim: brackets in a path are no markup. Colour is given by rich's Text.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

stdout = Console(highlight=False, markup=False, emoji=False)
stderr = Console(stderr=True, highlight=False, markup=False, emoji=False)


def print_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document on stdout."""
    print(json.dumps(jsonable(document), indent=2, allow_nan=False))


def print_line(text: str) -> None:
    """Print a message on stdout; a long line is not broken, so that paths can be copied."""
    stdout.print(text, soft_wrap=True)


def print_paragraph(text: str) -> None:
    """Print prose on stdout, broken at the width of the terminal."""
    stdout.print(text)


def print_note(text: str) -> None:
    """Print a message on stderr."""
    stderr.print(text, soft_wrap=True)


def is_first_process() -> bool:
    """Whether this process speaks, of several that a launcher or Lightning started."""
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
    return next((os.environ[name] for name in names if name in os.environ), "0") == "0"


def print_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Print a table; a column whose name starts with `>` is aligned to the right."""
    table = Table(
        title=Text(title) if title else None,
        title_justify="left",
        title_style="bold",
        header_style="",
        box=box.SIMPLE_HEAD,
    )
    for column in columns:
        justify = "right" if column.startswith(">") else "left"
        table.add_column(column.lstrip(">"), justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*(cell if isinstance(cell, str | Text) else cell_text(cell) for cell in row))
    stdout.print(table)


def cell_text(value: Any) -> str:
    """A number with four digits; a dash for a missing value."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
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

"""What a command prints: tables and messages for people, one JSON document for scripts."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def emit(document: Mapping[str, Any], *, as_json: bool) -> None:
    """Print the document if `--json` was given."""
    if as_json:
        print(json.dumps(plain(document), indent=2, allow_nan=False))


def plain(value: Any) -> Any:
    """Only what JSON knows: paths become text, NaN becomes null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item") and not isinstance(value, str):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> Table:
    """A table; columns whose name starts with `>` are aligned to the right."""
    shown = Table(
        title=title, title_justify="left", title_style="bold", header_style="", box=box.SIMPLE_HEAD
    )
    for column in columns:
        right = column.startswith(">")
        shown.add_column(column.lstrip(">"), justify="right" if right else "left", no_wrap=True)
    for row in rows:
        shown.add_row(*(cell if isinstance(cell, str) else show(cell) for cell in row))
    return shown


def show(value: Any) -> str:
    """A number as a person reads it; nothing for what is not there."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def said(message: str) -> None:
    """Tell a person on stderr."""
    err.print(message, markup=False)

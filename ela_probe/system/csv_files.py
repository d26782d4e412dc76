"""CSV in which no text is a formula: spreadsheets run what starts like one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

STARTS_OF_FORMULAS = ("=", "+", "-", "@", "\t", "\r")


def csv_text(table: pd.DataFrame) -> str:
    """A table as CSV."""
    from pandas.api.types import is_numeric_dtype

    texts = {
        str(name): column.map(inert)
        for name, column in table.items()
        if not is_numeric_dtype(column)
    }
    return table.assign(**texts).to_csv(index=False)


def inert(cell: Any) -> Any:
    """A cell; text that a spreadsheet would take for a formula gets an apostrophe.

    >>> inert("=1+1"), inert(-1.0)
    ("'=1+1", -1.0)
    """
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(STARTS_OF_FORMULAS) else cell

"""Small HTML tables, for objects that a notebook displays. Every value is escaped."""

import html
from collections.abc import Iterable, Sequence

from ela_probe.system.numbers import MISSING, readable

Cell = str | int | float | None
# The most rows of a table.
ROWS = 30


def html_table(
    title: str, headings: Sequence[str], rows: Iterable[Sequence[Cell]], *, note: str = ""
) -> str:
    """A table with a title and a note as its caption; at most ROWS rows, then how many are left.

    Args:
        rows: one value for each heading. Text stands left, numbers right, None and NaN are dashes.
    """
    rows = list(rows)
    heads = "".join(f'<th scope="col">{_escaped(text)}</th>' for text in headings)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows[:ROWS])
    left = len(rows) - ROWS
    more = f"; and {left} more rows" if left > 0 else ""
    return (
        f"<table><caption><b>{_escaped(title)}</b><br>{_escaped(note + more)}</caption>"
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
    )


def _cell(value: Cell) -> str:
    if isinstance(value, str):
        return f'<td style="text-align: left">{_escaped(value)}</td>'
    text = f"{value:,}" if isinstance(value, int) else readable(value)
    return f'<td style="text-align: right">{MISSING if value is None else text}</td>'


def _escaped(text: str) -> str:
    """Escaped for HTML; a lone surrogate, which no encoding can write, is replaced."""
    return html.escape(text.encode("utf-8", "replace").decode("utf-8"))

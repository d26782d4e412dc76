"""HTML tables. Every value is escaped here, so that no name can become markup."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from ela_probe.analysis.findings import verdicts
from ela_probe.analysis.result import Analysis
from ela_probe.evaluation.comparison import Comparison
from ela_probe.pruning.plan import Estimate, SkipPlan
from ela_probe.system.numbers import MISSING, readable

VERDICTS = {
    "first": "first of its stage",
    "repeats": "repeats the one before",
    "extends": "the one before + new sources",
    "distinct": "distinct",
    "undecided": "too uncertain to tell",
}


def table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], *, classes: Sequence[str] = ()
) -> str:
    """An HTML table with numbers aligned to the right and text to the left.

    Args:
        rows: plain values, one for each column; None and NaN become a dash.
        classes: the CSS class of each row; it is not escaped.
    """
    rows = [list(row) for row in rows]
    text = [any(isinstance(row[c], str) for row in rows) for c in range(len(columns))]

    def cells(tag: str, values: Sequence[Any]) -> str:
        return "".join(
            (f'<{tag} class="text">' if left else f"<{tag}>") + f"{cell(value)}</{tag}>"
            for value, left in zip(values, text, strict=True)
        )

    body = []
    for index, row in enumerate(rows):
        name = f' class="{classes[index]}"' if classes else ""
        body.append(f"<tr{name}>{cells('td', row)}</tr>")
    return (
        f'<div class="table"><table><thead><tr>{cells("th", columns)}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def cell(value: Any) -> str:
    """A value as escaped text: integers with separators, floats with four significant digits."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return f"{int(value):,}"
    if isinstance(value, Real):
        return readable(float(value), digits=4)
    if isinstance(value, Mapping):
        return ", ".join(f"{html.escape(str(k))} = {cell(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(cell, value))
    return html.escape(str(value))


def site_table(analysis: Analysis) -> str:
    """One row for each site, coloured by its verdict."""
    columns = ["stage", "site", "verdict", "kl", "± 2 se", "shape", "mass", "js", "q", "score"]
    found = [verdict for part in analysis.stages for verdict in verdicts(part)]
    rows = [
        [row["stage"], row["site"], VERDICTS[verdict], row["kl"], 2 * row["kl_se"], row["shape"],
         row["mass"], row["js"], row["quantile"], row["score"]]
        for row, verdict in zip(analysis.sites.to_dict("records"), found, strict=True)
    ]  # fmt: skip
    return table(columns, rows, classes=found)


def plan_table(plan: SkipPlan) -> str:
    """One row for each site: its action, and its divergence from the site it is compared with."""
    columns = ["stage", "site", "action", "compared with", "kl", "shape", "mass", "score"]

    def mean(estimate: Estimate | None) -> float | None:
        return None if estimate is None else estimate.mean

    pairs = [(stage, site) for stage in plan.stages for site in stage.sites]
    rows = [
        [stage.name, site.name, site.action, site.reference, mean(site.kl), mean(site.shape),
         mean(site.mass), site.score]
        for stage, site in pairs
    ]  # fmt: skip
    return table(columns, rows, classes=[site.action for _, site in pairs])


def comparison_table(comparison: Comparison) -> str:
    """One row for each model; every ratio is to the first one."""
    headings, rows = comparison.table()
    return table(headings, rows)

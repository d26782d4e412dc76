"""The page's tables as values; the template makes HTML of them and escapes every cell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from ela_probe.analysis.findings import verdicts
from ela_probe.analysis.result import Analysis
from ela_probe.evaluation.comparison import Comparison
from ela_probe.pruning.ablation import Ablation
from ela_probe.pruning.changes import AnalysisChanges
from ela_probe.pruning.correlations import FEWEST, calibrations, spearman
from ela_probe.pruning.correlations import site_table as measured_sites
from ela_probe.pruning.plan import Estimate, SkipPlan
from ela_probe.system.numbers import MISSING, readable

VERDICTS = {
    "first": "first of its stage",
    "repeats": "repeats the one before",
    "extends": "the one before + new sources",
    "distinct": "distinct",
    "undecided": "too uncertain to tell",
}
# The measures whose rank correlation with an ablation is shown.
RANKED = ("damage", "kl", "shape", "l2", "norm")


@dataclass(frozen=True)
class Table:
    """A table of the page.

    Attributes:
        name: of the files that it is saved to. caption: what it holds.
        columns: their headings.
        rows: plain values, one for each column; None and NaN become a dash.
        heading: the position of the column that names the row.
        classes: the CSS class of each row, if any.
    """

    name: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    heading: int = 0
    classes: Sequence[str] = ()

    @property
    def is_text(self) -> list[bool]:
        """Of every column whether it holds text, which is aligned to the left."""
        return [any(isinstance(row[c], str) for row in self.rows) for c in range(len(self.columns))]


def cell(value: Any) -> str:
    """A value as text: integers with separators, floats with four significant digits."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return f"{int(value):,}"
    if isinstance(value, Real):
        return readable(float(value), digits=4)
    if isinstance(value, Mapping):
        return ", ".join(f"{k} = {cell(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(cell, value))
    return str(value)


def number(value: Any) -> str | None:
    """A number as JavaScript reads it, to sort by and to save; None for text and missing values."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        return None
    return str(int(value)) if isinstance(value, Integral) else repr(float(value))


def site_table(analysis: Analysis) -> Table:
    """One row for each site, coloured by its verdict."""
    shown: dict[str, tuple[str, float]] = {}  # the columns of `Analysis.sites`, with a factor
    for action in ("skip", "affine") if analysis.has_damage else ():
        shown[f"damage: {action}"] = (f"damage_{action}", 1)
        shown[f"± 2 se: {action}"] = (f"damage_{action}_se", 2)
    shown |= {
        "kl": ("kl", 1), "± 2 se": ("kl_se", 2), "shape": ("shape", 1), "mass": ("mass", 1),
        "js": ("js", 1), "l2": ("l2", 1), "± 2 se: l2": ("l2_se", 2), "1 − cosine": ("cosine", 1),
        "entropy": ("entropy", 1), "newest": ("newest_share", 1),
        "q": ("quantile", 1), "score": ("score", 1),
    }  # fmt: skip
    frame = analysis.sites
    shown = {n: c for n, c in shown.items() if c[0] in frame and frame[c[0]].notna().any()}
    found = [verdict for part in analysis.stages for verdict in verdicts(part)]
    rows = [
        [row["site"], row["stage"], VERDICTS[verdict]]
        + [factor * row[column] for column, factor in shown.values()]
        for row, verdict in zip(frame.to_dict("records"), found, strict=True)
    ]
    columns = ["site", "stage", "verdict", *shown]
    caption = "Every retrieval; divergences and damage in nats"
    if "l2" in analysis.measures:
        caption += "; l2 and cosine of mixed values, relative to their norms"
    return Table("sites", caption, columns, rows, classes=found)


def plan_table(plan: SkipPlan) -> Table:
    """One row for each site: its action, and its divergence from the site it is compared with."""
    pairs = [(stage, site) for stage in plan.stages for site in stage.sites]
    by_values = any(site.l2 is not None for _, site in pairs)
    columns = [
        "site", "stage", "action", "damage", "compared with", "kl", "shape", "mass", "score",
        *(["l2", "1 − cosine"] if by_values else []),
    ]  # fmt: skip

    def mean(estimate: Estimate | None) -> float | None:
        return None if estimate is None else estimate.mean

    rows = [
        [site.name, stage.name, site.action, mean(site.damage), site.reference, mean(site.kl),
         mean(site.shape), mean(site.mass), site.score,
         *([mean(site.l2), mean(site.cosine)] if by_values else [])]
        for stage, site in pairs
    ]  # fmt: skip
    return Table("plan", "The plan, site by site", columns, rows,
                 classes=[site.action for _, site in pairs])  # fmt: skip


def comparison_table(comparison: Comparison) -> Table:
    """One row for each model; every ratio is to the first one."""
    headings, rows = comparison.table()
    return Table("comparison", "Models side by side", headings, rows)


def ablation_tables(analysis: Analysis, ablation: Ablation) -> list[Table]:
    """How well each measure ranks the sites, and the whole plans that were measured.

    The figures of single sites belong to the picture of the ablation.
    """
    measured = measured_sites(analysis, ablation)
    slopes = {line.action: line.slope for line in calibrations(measured)}
    rows: list[list[Any]] = []
    for action, own in measured.groupby("action", sort=False):
        known = own.dropna(subset=["loss_change"])
        row: list[Any] = [str(action), len(known), slopes.get(str(action))]
        for measure in RANKED:
            pairs = known[["loss_change", measure]].dropna().to_numpy(float)
            row.append(spearman(pairs[:, 1], pairs[:, 0]) if len(pairs) >= FEWEST else None)
        rows.append(row)
    columns = ["action", "sites", "slope on damage", *(f"Spearman: {name}" for name in RANKED)]
    tables = [Table("measured-ranks", "How well each measure predicts", columns, rows)]
    if not ablation.plans:
        return tables
    columns = [
        "plan", "planner", "action", "seed", "skipped", "predicted change", "loss",
        "accuracy or AP", "tuned loss", "tuned accuracy or AP",
    ]  # fmt: skip
    rows = [
        [p.name, p.planner, p.action, p.seed, p.skipped, p.predicted, p.loss, p.quality,
         p.tuned_loss, p.tuned_quality]
        for p in ablation.plans
    ]  # fmt: skip
    return [*tables, Table("measured-plans", "Whole plans, measured; nats", columns, rows)]


def changes_table(changes: AnalysisChanges) -> Table:
    """One row for each site of both analyses: what it was, what it is, and the difference."""
    columns = [
        "site", "stage", "kl: first", "kl: second", "change of kl", "± 2 se", "damage: first",
        "damage: second", "change of damage", "± 2 se of it", "plan: first", "plan: second",
    ]  # fmt: skip
    rows = [
        [c.site, c.stage, c.kl.first, c.kl.second, c.kl.change, c.kl.reach, c.damage.first,
         c.damage.second, c.damage.change, c.damage.reach, c.first_action, c.second_action]
        for c in changes.sites
    ]  # fmt: skip
    classes = ["skip" if c.first_action != c.second_action else "" for c in changes.sites]
    return Table("changes", "Every retrieval in both analyses; nats", columns, rows,
                 classes=classes)  # fmt: skip

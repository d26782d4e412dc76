"""Writing the report: one HTML page that stands alone, with pictures that answer.

The page carries its data, its style and its scripts. Nothing is fetched: its content security
policy allows the scripts in it by their hashes, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from ela_probe.analysis.findings import (
    NEAR,
    NEAR_VALUES,
    SMALL_LOSS,
    cheap_sites,
    findings,
    next_command,
    verdicts,
)
from ela_probe.analysis.result import Analysis
from ela_probe.evaluation.comparison import Comparison
from ela_probe.pruning.ablation import Ablation
from ela_probe.pruning.budgets import plans_by_count
from ela_probe.pruning.changes import AnalysisChanges, compare_analyses
from ela_probe.pruning.correlations import site_table as measured_sites
from ela_probe.pruning.cost_model import CostModel
from ela_probe.pruning.plan import Constraints, SkipPlan
from ela_probe.pruning.stability import plan_stability
from ela_probe.report.history import History
from ela_probe.report.page_data import analysis_data, rounded, script_json
from ela_probe.report.page_plans import plans_data
from ela_probe.report.tables import (
    ablation_tables,
    cell,
    changes_table,
    comparison_table,
    number,
    plan_table,
    site_table,
)
from ela_probe.report.view_plots import Samples
from ela_probe.system.messages import quoted
from ela_probe.system.numbers import counted
from ela_probe.system.storage import write_text

# In this order: D3, Observable Plot on it, then ours.
SCRIPTS = (
    "vendor/d3.min.js", "vendor/plot.umd.min.js", "browser/tables.js", "browser/charts.js",
    "browser/pairs.js", "browser/views.js", "browser/runs.js", "browser/plans.js",
    "browser/page.js",
)  # fmt: skip
LABELS = {"model_args": "model arguments", "checkpoint_sha256": "checkpoint SHA-256"}
# A site that keeps its action in this share of resamples is counted as stable.
FIRM = 0.9


def write_report(
    analysis: Analysis,
    path: str | Path,
    *,
    other: Analysis | None = None,
    names: tuple[str, str] = ("A", "B"),
    plan: SkipPlan | None = None,
    comparison: Comparison | None = None,
    costs: CostModel | None = None,
    ablation: Ablation | None = None,
    history: History | None = None,
    samples: Samples | None = None,
    resamples: int = 0,
    folder: str | Path | None = None,
) -> Path:
    """Write one page that stands alone: it carries its data and scripts, and fetches nothing.

    Args:
        other: a second analysis, to compare with. names: what the page calls the two.
        plan: listed in a table; its constraints are those of the plans for every budget.
        comparison: shown as a table.
        costs: of the analysed model; the plans for every budget then show a predicted time.
        ablation: measured loss changes, shown beside the predicted ones.
        history: of the training run.
        samples: the data set that was analysed, in its order, to show the most unusual samples;
            without it they are named by their positions.
        resamples: if not 0, the plan that the slider starts at is made again on so many resampled
            analyses, and the page tells how often every site keeps its action (`plan_stability`).
        folder: where the analysis was saved, for the next command; beside the page when None.

    Raises:
        PlanError, OptionError: the plan, the comparison, the costs or the ablation is of another
            model.
        AnalysisError: the other analysis has no site of this one.
        OutputError: the page can't be written.
    """
    stages = [part.stage for part in analysis.stages]
    if plan is not None:
        plan.check_sites(stages, found="the analysis")
    if comparison is not None:
        comparison.check_sites(stages, model=analysis.provenance.model)
    if ablation is not None:
        ablation.check_sites(stages)
    constraints = Constraints() if plan is None else plan.constraints
    plans = plans_by_count(analysis, constraints=constraints, costs=costs)
    changes = None if other is None else compare_analyses(analysis, other, names=names)
    start = _first_budget(analysis, plan, plans)
    stability = plan_stability(analysis, plans[start], resamples=resamples) if resamples else None
    data = {
        "near": NEAR,
        "nearValues": NEAR_VALUES,
        "smallLoss": SMALL_LOSS,
        "loss": analysis.provenance.loss,
        "analyses": [analysis_data(analysis, names[0], samples=samples)]
        + ([] if other is None else [analysis_data(other, names[1])]),
        "plans": plans_data(plans),
        "start": list(plans).index(start),
        "stability": stability,
        "timeError": None if costs is None else rounded(costs.error),
        "measured": None if ablation is None else _measured(analysis, ablation),
        "history": None if history is None else history.rows,
        "siteHistory": None if history is None else history.sites,
        "changes": None if changes is None else _changed(changes),
    }
    source = analysis.provenance
    where = Path(path).parent if folder is None else Path(folder)
    versions = ", ".join(f"{name} {version}" for name, version in source.versions.items())
    page = _render(
        title=f"Layer attention of {source.model or 'a model'}",
        subtitle=f"ela-probe report{f' · {versions}' if versions else ''}",
        findings=findings(analysis),
        commands=_commands(analysis, where),
        stability=None if stability is None else _stability(stability, start, resamples),
        facts=_facts(analysis),
        stages=stages,
        views=_views(data),
        has_damage=analysis.has_damage,
        measures=analysis.measures,
        verdicts=[v for part in analysis.stages for v in verdicts(part)],
        sites=site_table(analysis),
        plan=plan,
        plan_table=None if plan is None else plan_table(plan),
        comparison=comparison,
        comparison_table=None if comparison is None else comparison_table(comparison),
        costs=costs,
        ablation=ablation,
        ablation_tables=[] if ablation is None else ablation_tables(analysis, ablation),
        history=history,
        changes=changes,
        changes_table=None if changes is None else changes_table(changes),
        data=data,
    )
    return write_text(path, page)


def _render(*, data: Mapping[str, Any], **context: Any) -> str:
    """The page's text. Every value of the context is escaped by the template."""
    files = resources.files("ela_probe.report")
    scripts = [files.joinpath(name).read_text("utf-8") for name in SCRIPTS]
    hashes = [
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts
    ]
    text = (
        _environment()
        .get_template("page.html")
        .render(
            **context,
            policy="; ".join(
                (
                    "default-src 'none'",
                    "img-src data: blob:",
                    "style-src 'unsafe-inline'",
                    "script-src " + " ".join(f"'sha256-{digest}'" for digest in hashes),
                    "base-uri 'none'",
                    "form-action 'none'",
                )
            ),
            style=Markup(files.joinpath("browser/page.css").read_text("utf-8")),
            scripts=[Markup(script) for script in scripts],
            data=Markup(script_json(data)),
        )
    )
    # File names that are no text are held as lone surrogates, which UTF-8 can't write.
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


@cache
def _environment() -> jinja2.Environment:
    """The templates; each is compiled once."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ela_probe.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": cell, "number": number, "with_code": _with_code}
    return environment


def _with_code(text: str) -> Markup:
    """A sentence as HTML, with what stands between backticks as code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _commands(analysis: Analysis, folder: Path) -> list[str]:
    """The commands that carry out what the summary recommends."""
    command = next_command(analysis, folder)
    if command is None:
        return []
    checkpoint = quoted(analysis.provenance.checkpoint or "CHECKPOINT")
    return [command, f"ela-probe prune {checkpoint} --plan {quoted(folder / 'plan.json')}"]


def _facts(analysis: Analysis) -> list[tuple[str, Any]]:
    """What the analysis was made from."""
    known = {
        k: v for k, v in analysis.provenance.model_dump().items() if v not in (None, {}, "", ())
    }
    known.pop("versions", None)
    known.pop("classes", None)
    kinds = sorted({part.stage.kind for part in analysis.stages})
    sites = sum(len(part.stage.sites) for part in analysis.stages)
    known["stages"] = (
        f"{len(analysis.stages)}, with {sites} retrievals ({', '.join(kinds)} weights)"
    )
    return [(LABELS.get(name, name), value) for name, value in known.items()]


def _first_budget(analysis: Analysis, plan: SkipPlan | None, plans: Mapping[int, SkipPlan]) -> int:
    """How many retrievals the plan skips that the slider starts at: as many as the given plan."""
    if plan is not None:
        wanted = len(plan.changes)
    elif analysis.has_damage:
        wanted = len(cheap_sites(analysis))
    else:
        wanted = sum(v == "repeats" for part in analysis.stages for v in verdicts(part))
    return max(count for count in plans if count <= wanted)


def _stability(kept: Mapping[str, float], count: int, resamples: int) -> str:
    """How sure the plan is, in words."""
    firm = sum(share >= FIRM for share in kept.values())
    least = min(kept, key=lambda name: kept[name])
    return (
        f"How sure the plan for {counted(count, 'retrieval')} is: made again on {resamples} "
        f"resampled analyses, {firm} of {len(kept)} sites keep their action in at least {FIRM:.0%} "
        f"of them; the least stable is {least} ({kept[least]:.0%})."
    )


def _views(data: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Of every stage its name and which pictures look closer at it; stages without any left out."""
    found = [
        (
            stage["name"],
            [
                f"{name}-{s}"
                for name, known in (
                    ("heads", stage["heads"]),
                    ("classes", stage["classes"]["kl"]),
                    ("samples", stage["unusual"]),
                )
                if known
            ],
        )
        for s, stage in enumerate(data["analyses"][0]["stages"])
    ]
    return [(name, pictures) for name, pictures in found if pictures]


def _measured(analysis: Analysis, ablation: Ablation) -> list[dict[str, Any]]:
    """Of every site and action the measured and the predicted loss change, in nats.

    With them the change of the accuracy or of the average precision, a fraction of 1.
    """
    table = measured_sites(analysis, ablation)
    quality = "accuracy_change" if ablation.ap is None else "ap_change"
    names = ["loss_change", "loss_change_se", quality, "damage", "damage_se"]
    return [
        {"site": row["site"], "action": row["action"]} | {n: rounded(row[n]) for n in names}
        for row in table.to_dict("records")
    ]


def _changed(changes: AnalysisChanges) -> list[dict[str, Any]]:
    """Of every common site the figures that the pictures of changes show."""
    return [
        {
            "site": site.site,
            **{
                name: [None if x is None else rounded(x) for x in (c.first, c.second, c.reach)]
                for name, c in (("kl", site.kl), ("damage", site.damage))
            },
            "actions": [site.first_action, site.second_action],
        }
        for site in changes.sites
    ]

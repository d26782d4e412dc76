"""Writing the report page: the provenance, the findings, figures and tables."""

from __future__ import annotations

import base64
import html
import io
from importlib import resources
from pathlib import Path
from string import Template

from matplotlib.figure import Figure

from ela_probe.analysis.findings import Finding, findings, next_command
from ela_probe.analysis.result import Analysis, StageAnalysis
from ela_probe.evaluation.comparison import Comparison
from ela_probe.pruning.plan import SkipPlan
from ela_probe.report import plots
from ela_probe.report.tables import cell, comparison_table, plan_table, site_table
from ela_probe.system.messages import quoted
from ela_probe.system.storage import write_text

# With more stages than this only the first one's figures are unfolded.
UNFOLDED = 4
LABELS = {"model_args": "model arguments", "checkpoint_sha256": "checkpoint SHA-256"}
GLOSSARY = """<details><summary>How to read this</summary><ul>
<li><b>kl</b> (nats): how far a retrieval is from an earlier one, as a mean over samples. 0 means
equal weights. kl = shape + mass, exactly.</li>
<li><b>shape</b>: how differently it weights the sources that both retrievals have. <b>mass</b>:
−log of the weight that it leaves on these: exp(−mass) stays there, and the rest goes to new
sources.</li>
<li>shape ≈ 0 and mass ≈ 0: it retrieves what the earlier site did. shape ≈ 0 and mass &gt; 0: it
retrieves the same plus new sources.</li>
<li><b>u</b> = 1 − exp(−kl), in (0, 1). A Beta distribution is fitted to the u of a stage.
<b>q</b>: the chance that a random retrieval of the stage is less divergent than this one.
<b>score</b>: the skip score that q is mapped to (our reading of EBQM). The highest scores are
skipped first.</li>
</ul></details>"""


def write_report(
    analysis: Analysis,
    path: str | Path,
    *,
    plan: SkipPlan | None = None,
    comparison: Comparison | None = None,
    folder: str | Path | None = None,
) -> Path:
    """Write one self-contained page: figures are embedded, and nothing is fetched.

    Args:
        plan: drawn as a strip and listed in a table.
        comparison: shown as a table.
        folder: where the analysis was saved, for the next command; beside the page when None.

    Raises:
        PlanError, OptionError: the plan or the comparison is of another model.
        OutputError: the page can't be written.
    """
    stages = [part.stage for part in analysis.stages]
    if plan is not None:
        plan.check_sites(stages, found="the analysis")
    if comparison is not None:
        comparison.check_sites(stages, model=analysis.provenance.model)
    source = analysis.provenance
    folder = Path(path).parent if folder is None else folder
    parts = [
        _summary(findings(analysis)) + _next(analysis, folder),
        f"<h2>What was analysed</h2>{_provenance(analysis)}",
    ]
    if comparison is not None:
        parts.append(f"<h2>Comparison</h2>{_comparison(comparison)}")
    if plan is not None:
        parts.append(f"<h2>Skip plan</h2>{_plan(plan)}")
    parts.append(
        f"<h2>Along depth</h2>{GLOSSARY}"
        + _figure(
            plots.adjacent_divergence(analysis)[0],
            "Each retrieval's divergence from the one before it. Retrievals below the dashed line "
            "nearly repeat the one before.",
        )
    )
    parts.append("<h2>Stages</h2>")
    for index, part in enumerate(analysis.stages):
        unfolded = index == 0 or len(analysis.stages) <= UNFOLDED
        parts.append(_stage(part, unfolded))
    parts.append(f"<h2>Sites</h2>{site_table(analysis)}")
    template = resources.files("ela_probe.report").joinpath("page.html").read_text("utf-8")
    versions = ", ".join(f"{name} {version}" for name, version in source.versions.items())
    page = Template(template).substitute(
        title=html.escape(f"Layer-attention redundancy of {source.model or 'a model'}"),
        subtitle=html.escape(f"ela-probe report{f' · {versions}' if versions else ''}"),
        body="\n".join(parts),
    )
    return write_text(path, page)


def _summary(found: list[Finding]) -> str:
    """The summary of all stages, then a list: verdicts, reservations, fits."""
    lead = "".join(f'<p class="lead">{cell(f.text)}</p>' for f in found if f.kind == "summary")
    items = "".join(
        f"<li>{cell(f.text)}</li>" for f in found if f.kind not in ("summary", "fit", "caution")
    )
    cautions = "".join(
        f'<li class="caution">{cell(f.text)}</li>' for f in found if f.kind == "caution"
    )
    fits = "".join(f"<li>{cell(f.text)}</li>" for f in found if f.kind == "fit")
    return f"{lead}<ul>{items}{cautions}{fits}</ul>"


def _next(analysis: Analysis, folder: str | Path) -> str:
    """The commands that carry out what the summary recommends."""
    command = next_command(analysis, folder)
    if command is None:
        return ""
    checkpoint = quoted(analysis.provenance.checkpoint or "CHECKPOINT")
    plan = quoted(Path(folder) / "plan.json")
    pruning = f"ela-probe prune {checkpoint} --plan {plan}"
    return f"<p>Next: <code>{cell(command)}</code>, then <code>{cell(pruning)}</code>.</p>"


def _provenance(analysis: Analysis) -> str:
    known = {k: v for k, v in analysis.provenance.model_dump().items() if v not in (None, {}, "")}
    known.pop("versions", None)
    kinds = sorted({part.stage.kind for part in analysis.stages})
    sites = sum(len(part.stage.sites) for part in analysis.stages)
    known["stages"] = (
        f"{len(analysis.stages)}, with {sites} retrievals ({', '.join(kinds)} weights)"
    )
    rows = "".join(
        f"<dt>{html.escape(LABELS.get(name, name))}</dt><dd>{cell(value)}</dd>"
        for name, value in known.items()
    )
    return f"<dl>{rows}</dl>"


def _comparison(comparison: Comparison) -> str:
    rounds = comparison.models[0].latency.training.rounds
    text = (
        f"Time and memory for batches of {comparison.batch_shape[0]}, measured on "
        f"{comparison.machine.device_name}. A ratio is to the first model: the median of {rounds} "
        "rounds, with the quartiles in brackets. One marked noise can't be told from 1."
    )
    return f"<p>{html.escape(text)}</p>{comparison_table(comparison)}"


def _plan(plan: SkipPlan) -> str:
    text = (
        f"{len(plan.skipped)} of {len(plan.actions)} retrievals ({plan.share:.0%}) are not formed, "
        f"chosen by {plan.origin.planner} on {plan.origin.measure}."
    )
    figure = _figure(
        plots.skip_plan(plan)[0],
        "keep: formed; recur: updated from the one before; skip: not formed, but still a source "
        "of later layers; drop: neither formed nor a source.",
    )
    return (
        f"<p>{html.escape(text)}</p>{figure}<details><summary>Site by site</summary>"
        f"{plan_table(plan)}</details>"
    )


def _stage(part: StageAnalysis, unfolded: bool) -> str:
    figures = (
        (plots.divergence_heatmap(part)[0], "KL of every pair; the diagonal holds neighbours."),
        (plots.weights_heatmap(part)[0], "Mean weight of every source at every site."),
        (plots.beta_histogram(part)[0], "How divergent neighbours are over all samples."),
    )
    embedded = "".join(_figure(figure, caption) for figure, caption in figures)
    return (
        f"<details{' open' if unfolded else ''}><summary>{html.escape(part.stage.name)} "
        f"({len(part.stage.sites)} sites)</summary>"
        f'<div class="figures">{embedded}</div></details>'
    )


def _figure(figure: Figure, caption: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    title = html.escape(figure.axes[0].get_title(loc="left"), quote=True)
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{title}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )

"""What a notebook shows of an analysis and of its stages: one table each."""

import math

from ela_probe.analysis.findings import verdicts
from ela_probe.analysis.measures import vendi_score
from ela_probe.analysis.result import Analysis, StageAnalysis
from ela_probe.system.html import Cell, html_table
from ela_probe.system.numbers import counted, readable


def analysis_html(analysis: Analysis) -> str:
    """One row for each stage."""
    source = analysis.provenance
    known = [
        counted(source.samples, "sample"),
        "" if source.accuracy is None else f"accuracy {source.accuracy:.2%}",
        ""
        if source.precision is None or source.precision.box.ap is None
        else f"AP {source.precision.box.ap:.2%}",
        "damage measured" if analysis.has_damage else "damage not measured",
    ]
    rows: list[list[Cell]] = [
        [
            part.stage.name,
            part.stage.kind,
            len(part.stage.sites),
            verdicts(part).count("repeats"),
            vendi_score(part),
            "none" if part.fit is None else f"Beta({_shape(part)}), KS {part.fit.ks:.2f}",
        ]
        for part in analysis.stages
    ]
    return html_table(
        f"{source.model or 'A model'} on {source.data or 'data'}",
        ["stage", "weights", "sites", "nearly repeat the one before", "Vendi score", "fit of u"],
        rows,
        note=", ".join(filter(None, known)),
    )


def stage_html(part: StageAnalysis) -> str:
    """One row for each site."""
    rows: list[list[Cell]] = []
    for t, site in enumerate(part.stage.sites):
        row: list[Cell] = [
            site.name,
            site.sources,
            *(float(part.adjacent(m)[t]) for m in part.measures),
        ]
        damage = None if part.damage is None else part.damage.of(t, "skip")
        row += [float(part.quantiles[t]), float(part.entropy[t])]
        rows.append([*row, math.nan if damage is None else damage.mean])
    return html_table(
        part.stage.name,
        ["site", "sources", *part.measures, "quantile", "entropy", "damage of skip"],
        rows,
        note=f"{part.stage.kind} weights, {counted(part.samples, 'sample')}; "
        + ("in nats, " if "kl" in part.measures else "of mixed values, ")
        + "from the site before",
    )


def _shape(part: StageAnalysis) -> str:
    assert part.fit is not None
    return f"{readable(part.fit.alpha)}, {readable(part.fit.beta)}"

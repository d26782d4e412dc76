"""`ela-probe report`."""

from pathlib import Path
from typing import Annotated

import typer

from . import console, inputs
from .options import Json
from .outputs import check_output, writing


def command(
    *,
    analysis: Annotated[
        Path,
        typer.Argument(
            help="A folder that `analyze` wrote.", callback=inputs.ANALYSIS_FOLDER.check
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Page. Default: DIR/report.html.")
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            help="A skip plan to show. Default: DIR/plan.json, if it exists.",
            callback=inputs.PLAN.check,
        ),
    ] = None,
    comparison: Annotated[
        Path | None,
        typer.Option(
            help="JSON that `compare -o` wrote, to show.", callback=inputs.COMPARISON.check
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Write one self-contained HTML page about an analysis: figures, findings, plan.

    ela-probe report runs/digits/best-analysis
    """
    if plan is None and (analysis / "plan.json").is_file():
        plan = analysis / "plan.json"
    path = output or analysis / "report.html"
    check_output(path, [plan, comparison, *inputs.files_of(analysis)])

    from ela_probe.analysis.result import Analysis
    from ela_probe.evaluation.comparison import Comparison
    from ela_probe.pruning.plan import SkipPlan
    from ela_probe.report.page import write_report

    loaded = Analysis.load(analysis)
    chosen = None if plan is None else SkipPlan.load(plan)
    compared = None if comparison is None else Comparison.load(comparison)
    with writing(path):
        write_report(loaded, path, plan=chosen, comparison=compared, folder=analysis)
    if json:
        console.print_json({"report": path})
    else:
        console.print_line(f"written to {path}")

"""`ela-probe report`."""

import json as json_library
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
    from ela_probe.errors import OptionError
    from ela_probe.pruning.plan import SkipPlan
    from ela_probe.report.page import write_report

    loaded = Analysis.load(analysis)
    compared = None
    if comparison is not None:
        try:
            compared = json_library.loads(comparison.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise OptionError(
                f"cannot read the comparison {comparison} ({error}); expected JSON that "
                "`ela-probe compare -o` wrote"
            ) from error
    chosen = None if plan is None else SkipPlan.load(plan)
    with writing(path):
        write_report(loaded, path, plan=chosen, comparison=compared)
    if json:
        console.print_json({"report": path})
    else:
        console.print_line(f"written to {path}")

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
    other: Annotated[
        Path | None,
        typer.Argument(
            help="A second analysis, to compare with.", callback=inputs.ANALYSIS_FOLDER.check
        ),
    ] = None,
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
    costs: Annotated[
        Path | None,
        typer.Option(
            help="File that `costs` wrote: the plans then show a predicted time.",
            callback=inputs.COSTS.check,
        ),
    ] = None,
    ablation: Annotated[
        Path | None,
        typer.Option(
            help="File that `ablate` wrote, to show. Default: DIR/ablation.json, if it exists.",
            callback=inputs.ABLATION.check,
        ),
    ] = None,
    history: Annotated[
        Path | None,
        typer.Option(
            help="metrics.csv of the training run, to show. Default: that in the folder of DIR, "
            "if the analysed checkpoint lies there too.",
            callback=inputs.HISTORY.check,
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="The analysed checkpoint: the most unusual samples are then read from its data, "
            "and shown.",
            callback=inputs.CHECKPOINT.check,
        ),
    ] = None,
    resamples: Annotated[
        int,
        typer.Option(
            min=0,
            help="Plan again on so many resampled analyses, such as 100, and show how often each "
            "site keeps its action. 0: don't. Slow for many sites.",
        ),
    ] = 0,
    json: Json = False,
) -> None:
    """Write one HTML page about an analysis, or about two: pictures, findings, a plan a budget.

    The page needs no network and no server. Its slider shows the plan of every budget, and saves
    it as JSON for `prune`.

    ela-probe report runs/digits/best-analysis

    ela-probe report runs/seed0/best-analysis runs/seed1/best-analysis
    """
    plan = plan or existing(analysis / "plan.json")
    ablation = ablation or existing(analysis / "ablation.json")
    path = output or analysis / "report.html"
    others = [] if other is None else inputs.files_of(other)
    check_output(
        path, [plan, comparison, costs, ablation, history, *inputs.files_of(analysis), *others]
    )

    from ela_probe.analysis.result import Analysis
    from ela_probe.evaluation.comparison import Comparison
    from ela_probe.pruning.ablation import Ablation
    from ela_probe.pruning.cost_model import CostModel
    from ela_probe.pruning.plan import SkipPlan
    from ela_probe.report.history import History
    from ela_probe.report.page import write_report

    loaded = Analysis.load(analysis)
    analysed = loaded.provenance.checkpoint
    if history is None and analysed and (analysis.parent / Path(analysed).name).is_file():
        history = existing(analysis.parent / "metrics.csv")
    second = None if other is None else Analysis.load(other)
    names = ("A", "B") if other is None else inputs.names_of(analysis, other)
    shown = None if plan is None else SkipPlan.load(plan)
    compared = None if comparison is None else Comparison.load(comparison)
    timed = None if costs is None else CostModel.load(costs)
    measured = None if ablation is None else Ablation.load(ablation)
    trained = None if history is None else History.load(history)
    samples = None
    if checkpoint is not None:
        from ela_probe.checkpoint import read_checkpoint
        from ela_probe.pipeline.inputs import analysed_samples

        samples = analysed_samples(read_checkpoint(checkpoint), loaded.provenance)
    with writing(path):
        write_report(
            loaded, path, other=second, names=names, plan=shown, comparison=compared, costs=timed,
            ablation=measured, history=trained, samples=samples, resamples=resamples,
            folder=analysis,
        )  # fmt: skip
    if json:
        console.print_json({"report": path})
    else:
        console.print_line(f"written to {path}")


def existing(path: Path) -> Path | None:
    """The path if there is such a file."""
    return path if path.is_file() else None

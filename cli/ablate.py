"""`ela-probe ablate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ela_probe.errors import OptionError

from . import console, inputs
from .options import (
    BatchSize,
    CheckpointArgument,
    DataOptions,
    Device,
    Json,
    Limit,
    ModelOptions,
    Seed,
    SplitName,
)
from .outputs import beside, check_output_folder, writing_folder

if TYPE_CHECKING:
    import pandas as pd

    from ela_probe.pruning.ablation import Ablation

RESULTS = ("ablation.json", "sites.csv", "plans.csv", "detections")


def command(
    *,
    checkpoint: CheckpointArgument,
    analysis: Annotated[
        Path,
        typer.Option(
            help="The checkpoint's analysis, a folder that `analyze` wrote.",
            callback=inputs.ANALYSIS_FOLDER.check,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder. Default: CHECKPOINT-ablation, beside it."),
    ] = None,
    data: DataOptions,
    split: Annotated[SplitName, typer.Option(help="Samples to measure on.")] = "test",
    limit: Limit = None,
    batch_size: BatchSize = None,
    skip: Annotated[
        float | None,
        typer.Option(
            help="Also measure whole plans that skip this share, by every planner.",
            callback=inputs.share_of("--skip"),
            show_default=False,
        ),
    ] = None,
    costs: Annotated[
        Path | None,
        typer.Option(
            help="File that `costs` wrote, for --time.",
            callback=inputs.COSTS.check,
            show_default=False,
        ),
    ] = None,
    time: Annotated[
        float | None,
        typer.Option(
            help="Also measure plans whose training step takes this share of the time.",
            callback=inputs.share_of("--time"),
            show_default=False,
        ),
    ] = None,
    random: Annotated[int, typer.Option(min=0, help="Random plans of each action.")] = 10,
    tune_epochs: Annotated[
        int, typer.Option(min=0, help="Fine-tune every plan for so many epochs, and measure again.")
    ] = 0,
    model: ModelOptions,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue after an interruption.")
    ] = False,
    device: Device = "auto",
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Measure what each action at each site really does to the loss: the truth behind estimates.

    Every site is changed alone, and the loss measured on held-out samples, of a detector also the
    average precision (AP) of boxes; with --skip also whole plans of that share by every planner,
    with --costs and --time plans of equal time. Writes ablation.json, sites.csv and plans.csv, and
    prints how well each measure of the analysis ranks the sites (Spearman's correlation) and how
    well the predicted damage fits in size.

        ela-probe ablate best.pt --analysis best-analysis --limit 2000
        ela-probe ablate best.pt --analysis best-analysis --skip 0.5 --random 20 --tune-epochs 1
        ela-probe ablate best.pt --analysis best-analysis --costs costs.json --time 0.85
    """
    if (costs is None) != (time is None):
        raise OptionError("got one of --costs and --time; expected both, or neither")
    folder = output or beside(checkpoint, "ablation", "")
    given_files = [checkpoint, costs, inputs.path_of_data(data.data), *inputs.files_of(analysis)]
    check_output_folder(folder, RESULTS, given_files)

    from ela_probe.analysis.result import Analysis

    known = Analysis.load(analysis)
    loaded = model.read(checkpoint)

    from ela_probe.pipeline.ablate import ablate_checkpoint
    from ela_probe.pruning.correlations import calibrations, correlations, site_table
    from ela_probe.pruning.cost_model import CostModel
    from ela_probe.system.csv_files import csv_text
    from ela_probe.system.storage import write_text
    from ela_probe.training.config import TrainConfig

    samples = data.open(loaded)
    tuning = None
    if tune_epochs:
        tuning = TrainConfig.for_finetuning(samples.spec.task, epochs=tune_epochs, seed=seed)
    with writing_folder(folder, () if resume else RESULTS):
        result = ablate_checkpoint(
            loaded,
            known,
            output=folder,
            data=samples,
            split=split,
            limit=limit,
            batch_size=batch_size,
            skip=skip,
            costs=None if costs is None else CostModel.load(costs),
            time=time,
            random=random,
            tuning=tuning,
            device=device,
            resume=resume,
        )
        table = site_table(known, result)
        write_text(folder / "sites.csv", csv_text(table))
        write_text(folder / "plans.csv", csv_text(plan_table(result)))
    found, lines = correlations(table, seed=seed), calibrations(table)
    if json:
        console.print_json(
            {
                "directory": folder,
                "samples": result.samples,
                "loss": result.loss / result.samples,
                "accuracy": result.accuracy / result.samples,
                **({} if result.ap is None else {"accuracy": None, "ap": result.ap}),
                "sites": table.to_dict("records"),
                "correlations": [entry._asdict() for entry in found],
                "calibrations": [entry._asdict() for entry in lines],
                "plans": [plan.model_dump() for plan in result.plans],
            }
        )
        return
    describe(table, result)
    console.print_table(
        "Spearman's correlation with the measured loss change (95 % interval over sites)",
        ("measure", "action", ">sites", ">correlation", ">from", ">to"),
        [[c.measure, c.action, c.sites, *(f"{v:.2f}" for v in c[3:])] for c in found],
    )
    for line in lines:
        console.print_paragraph(
            f"• {line.action}: measured = {line.slope:.2f} x predicted + {line.intercept:.3f} nats "
            f"(R² {line.r_squared:.2f}, {line.sites} sites)."
        )
    console.print_line(f"written to {folder}")


def plan_table(result: "Ablation") -> "pd.DataFrame":
    """One row for each plan."""
    import pandas as pd

    from ela_probe.pruning.ablation import PlanResult

    rows = [plan.model_dump() for plan in result.plans]
    return pd.DataFrame(rows, columns=list(PlanResult.model_fields))


def describe(table: "pd.DataFrame", result: "Ablation") -> None:
    """Print the measured changes of the sites, and the plans."""
    from ela_probe.system.numbers import readable

    detects = (result.data or "").startswith("coco:")
    figure, column = ("AP", "ap_change") if detects else ("accuracy", "accuracy_change")
    value = result.ap if detects else result.accuracy / result.samples
    quality = "" if value is None else f", {figure} {value:.2%}"
    console.print_table(
        f"{result.samples:,} samples of {result.data} ({result.split}), loss "
        f"{readable(result.loss / result.samples)}{quality}\n"
        "change of the loss in nats when a site is changed alone: measured and predicted",
        (
            *("site", "action", ">measured", ">± se", ">predicted"),
            *(() if value is None else (f">{figure}",)),
        ),
        [
            [
                row["site"],
                row["action"],
                readable(row["loss_change"]),
                readable(row["loss_change_se"], digits=1),
                readable(row["damage"]),
                *([] if value is None else [f"{row[column]:+.2%}"]),
            ]
            for row in table.to_dict("records")
        ],
    )
    if not result.plans:
        return
    tuned = any(plan.tuned_loss is not None for plan in result.plans)
    console.print_table(
        "whole plans",
        ("plan", ">skipped", ">loss", f">{figure}", *((">tuned", f">{figure}") if tuned else ())),
        [
            [
                plan.name,
                plan.skipped,
                readable(plan.loss),
                f"{plan.quality or 0:.2%}",
                *([readable(plan.tuned_loss), f"{plan.tuned_quality or 0:.2%}"] if tuned else []),
            ]
            for plan in result.plans
        ],
    )

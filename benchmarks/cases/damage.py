"""Does the predicted damage say what a skip costs, and are plans by it better than random ones?

Each checkpoint is analysed on training (or other) images and ablated on test images.
"""

import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer

from benchmarks.support.results import NOTHING, JsonPath, publish
from ela_probe.analysis.result import Analysis
from ela_probe.checkpoint import read_checkpoint
from ela_probe.errors import AnalysisError
from ela_probe.pipeline.ablate import ablate_checkpoint
from ela_probe.pipeline.analyze import analyze_checkpoint
from ela_probe.pipeline.inputs import data_for
from ela_probe.pruning.ablation import Ablation, PlanResult
from ela_probe.pruning.correlations import calibrations, correlations, site_table
from ela_probe.pruning.cost_model import CostModel
from ela_probe.system.device import resolve_device
from ela_probe.system.storage import output_directory
from ela_probe.training.config import TrainConfig

LEAST_CORRELATION = 0.8
SLOPES = (0.5, 2.0)


def run(
    checkpoint: Annotated[
        list[Path], typer.Option(help="May be repeated, for example one of every seed.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="A folder for all runs.")],
    skip: Annotated[float, typer.Option(min=0.01, max=0.99, help="Share of whole plans.")] = 0.5,
    random: Annotated[int, typer.Option(min=1, help="Random plans of each action.")] = 20,
    split: Annotated[
        Literal["train", "val"], typer.Option(help="Samples that damage is predicted on.")
    ] = "train",
    analysis_limit: Annotated[int, typer.Option(min=2, help="At most so many.")] = 2000,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Test samples to measure on; default: all.")
    ] = None,
    costs: Annotated[
        Path | None, typer.Option(help="What `ela-probe costs` wrote for this model, for --time.")
    ] = None,
    time: Annotated[
        float | None,
        typer.Option(min=0.01, max=0.99, help="Also plans for this share of the step's time."),
    ] = None,
    tune_epochs: Annotated[int, typer.Option(min=0, help="Fine-tune every plan.")] = 0,
    device: str = "auto",
    seed: int = 0,
    json: JsonPath = None,
) -> None:
    """Spearman's correlation, calibration and whole plans of checkpoints, against the truth.

    A finished analysis or ablation in the output folder is not repeated.
    """
    output_directory(output)
    by_measure: list[dict[str, Any]] = []
    lines: list[dict[str, Any]] = []
    plans: list[dict[str, Any]] = []
    for number, path in enumerate(checkpoint):
        loaded = read_checkpoint(path)
        name = f"{number}: {loaded.header.model.name}"
        tuning = None
        if tune_epochs:
            task = data_for(loaded).spec.task
            tuning = TrainConfig.for_finetuning(task, epochs=tune_epochs, seed=seed)
        folder = output_directory(output / f"{number}-{loaded.sha256[:8]}")
        try:
            analysis = Analysis.load(folder / "analysis")
        except AnalysisError:
            analysis = analyze_checkpoint(loaded, split=split, limit=analysis_limit, device=device)
            analysis.save(folder / "analysis")
        ablation = ablate_checkpoint(
            loaded, analysis, output=folder, limit=limit, skip=skip, random=random, tuning=tuning,
            costs=None if costs is None else CostModel.load(costs), time=time, device=device,
            resume=(folder / "ablation.json").exists(),
        )  # fmt: skip
        table = site_table(analysis, ablation)
        by_measure += [
            {
                "checkpoint": name, "measure": c.measure, "action": c.action, "sites": c.sites,
                "Spearman": round(c.spearman, 2), "95 %": f"{c.low:.2f} to {c.high:.2f}",
            }
            for c in correlations(table, seed=seed)
        ]  # fmt: skip
        lines += [
            {
                "checkpoint": name, "action": c.action, "sites": c.sites,
                "slope": round(c.slope, 2), "intercept": round(c.intercept, 3),
                "R²": round(c.r_squared, 2),
            }
            for c in calibrations(table)
        ]  # fmt: skip
        plans += plan_rows(name, ablation)
    verdicts = {
        f"Spearman of damage with the measured change, {action}: at least {LEAST_CORRELATION}": all(
            row["Spearman"] >= LEAST_CORRELATION
            for row in by_measure
            if (row["measure"], row["action"]) == ("damage", action)
        )
        for action in ("skip", "affine")
    }
    verdicts[f"slope of measured on predicted between {SLOPES[0]} and {SLOPES[1]}"] = all(
        SLOPES[0] <= row["slope"] <= SLOPES[1] for row in lines if row["action"] != "recur"
    )
    publish(
        "damage",
        {
            "Rank correlation of each measure with the measured loss change": by_measure,
            "The measured on the predicted loss change": lines,
            f"Plans that skip {skip:g}": plans,
        },
        json_path=json, seed=seed, device=resolve_device(device), verdicts=verdicts,
    )  # fmt: skip


def plan_rows(checkpoint: str, ablation: Ablation) -> list[dict[str, Any]]:
    """A row for each plan; the random ones of an action are one row."""
    groups: dict[str, list[PlanResult]] = {}
    for plan in ablation.plans:
        random = plan.planner == "random"
        groups.setdefault(re.sub(r"-\d+$", "", plan.name) if random else plan.name, []).append(plan)
    return [
        {"checkpoint": checkpoint, "plan": name, "skipped": own[0].skipped, **figures(own, groups)}
        for name, own in groups.items()
    ]


def figures(
    own: Sequence[PlanResult], groups: Mapping[str, Sequence[PlanResult]]
) -> dict[str, Any]:
    """Means over the plans of a group, and how many random plans of its action are worse.

    An equal one is the same plan: a small network has few of a size.
    """
    timed = "-time" if own[0].time_ratio is not None else ""
    rivals = groups.get(f"random-{own[0].action}{timed}", [])
    loss = statistics.fmean(plan.loss for plan in own)
    accuracies = [plan.accuracy for plan in own if plan.accuracy is not None]
    tuned = [plan.tuned_accuracy for plan in own if plan.tuned_accuracy is not None]
    predicted = [plan.predicted for plan in own if plan.predicted is not None]
    ratios = [plan.time_ratio for plan in own if plan.time_ratio is not None]
    return {
        "step time": round(statistics.fmean(ratios), 3) if ratios else NOTHING,
        "predicted": round(statistics.fmean(predicted), 3) if predicted else NOTHING,
        "loss": round(loss, 3),
        "accuracy %": round(100 * statistics.fmean(accuracies), 1),
        "random: worse, equal, better": (
            ", ".join(
                str(sum(sign == np.sign(rival.loss - loss) for rival in rivals))
                for sign in (1, 0, -1)
            )
            if rivals and own is not rivals
            else NOTHING
        ),
        "tuned accuracy %": round(100 * statistics.fmean(tuned), 1) if tuned else NOTHING,
    }

"""Is it better to skip planned retrievals than as many random ones?

Checkpoints are pruned by plans of all planners and by random plans, and fine-tuned in the same way.
Plans are compared within a checkpoint.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.support.candidates import (
    BASELINES,
    PLANNED,
    RANDOM,
    UNPRUNED,
    Candidate,
    PlannedCheckpoint,
    Skipping,
    check_planners,
)
from benchmarks.support.results import NOTHING, JsonPath, markdown, mean_and_deviation, publish
from benchmarks.support.tuning import Tuning
from ela_probe.errors import OptionError
from ela_probe.system.device import resolve_device
from ela_probe.system.storage import output_directory, write_json, write_text
from ela_probe.training.config import TrainConfig

WHEN = ("before", "after")
FIGURES = [(what, when) for when in WHEN for what in ("accuracy", "loss")]


@dataclass(frozen=True)
class Outcome:
    """The result of a plan for a checkpoint."""

    checkpoint: str
    candidate: Candidate
    record: dict[str, Any]

    def figure(self, what: str, when: str) -> float:
        """Accuracy in percent or loss in nats, before or after fine-tuning."""
        return float(self.record[when][what]) * (100 if what == "accuracy" else 1)


def run(
    checkpoint: Annotated[
        list[Path], typer.Option(help="May be repeated, for example one of every seed.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="A folder for all runs.")],
    skip: Annotated[
        list[float] | None,
        typer.Option(
            min=0.01, max=0.99, help="Share to skip; may be repeated. Default: 0.33 and 0.5."
        ),
    ] = None,
    action: Annotated[Skipping, typer.Option(help="What to do with them.")] = "skip",
    planner: Annotated[
        list[str] | None,
        typer.Option(
            help="budget, score, loss (smallest rise of the training loss when skipped alone), "
            "alternate or deepest; may be repeated. Default: all."
        ),
    ] = None,
    random: Annotated[int, typer.Option(min=1, help="Random plans for each checkpoint.")] = 5,
    analysis_limit: Annotated[int, typer.Option(min=2, help="Training images to analyze.")] = 2000,
    test_limit: Annotated[
        int | None, typer.Option(min=1, help="Test images; default: all.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of fine-tuning.")] = 2,
    lr: Annotated[float | None, typer.Option(help="As of `ela-probe finetune`.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1)] = None,
    seed: Annotated[int, typer.Option(help="Seed of random plans and of fine-tuning.")] = 0,
    device: str = "auto",
    json: JsonPath = None,
) -> None:
    """Prune checkpoints by all plans, fine-tune, and write table.md and table.json.

    Plans are made from training images only. A finished run is not repeated.
    """
    planners = list(dict.fromkeys(planner or (*PLANNED, *BASELINES)))
    check_planners(planners)
    given = {"epochs": epochs, "lr": lr, "batch_size": batch_size, "seed": seed}
    output_directory(output)
    opened = [
        PlannedCheckpoint.read(
            path, output=output, limit=analysis_limit, action=action, device=device
        )
        for path in checkpoint
    ]
    if len({subject.loaded.sha256 for subject in opened}) < len(opened):
        raise OptionError("two of the checkpoints are the same; give each once")
    shares = sorted(set(skip or (0.33, 0.5)))
    tunings = [
        Tuning(
            subject,
            candidate,
            TrainConfig.for_finetuning(
                subject.data.spec.task, **{k: v for k, v in given.items() if v is not None}
            ),
            test_limit,
        )
        for subject in opened
        for candidate in (
            subject.unpruned(),
            *(
                candidate
                for share in shares
                for candidate in subject.candidates(
                    share, planners=planners, draws=random, seed=seed
                )
            ),
        )
    ]
    outcomes = run_all(tunings)
    tables: dict[str, list[dict[str, Any]]] = {}
    for share in shares:
        own = [o for o in outcomes if o.candidate.share in (share, 0.0)]
        title = f"{share:g} of the retrievals, {action}"
        tables[title] = planner_rows(own)
        pruned = [o for o in own if o.candidate.planner != UNPRUNED]
        tables[f"{title}: above the mean of random plans"] = against_random(pruned)
        tables[f"{title}: rank correlation with divergence"] = correlations(pruned)
    tables["Plans"] = [plan_row(outcome) for outcome in outcomes]
    config = tunings[0].config
    tables["Settings"] = [
        {
            "checkpoints": len(opened),
            "analyzed images": analysis_limit,
            "test images": int(outcomes[0].record["after"]["samples"]),
            "random plans": random,
            "epochs": config.epochs,
            "batch": config.batch_size,
            "lr": config.lr,
        }
    ]
    where = resolve_device(device)
    result = publish("plans", tables, json_path=json, seed=seed, device=where)
    write_json(output / "table.json", result)
    write_text(output / "table.md", markdown(result) + "\n")


def run_all(tunings: Sequence[Tuning]) -> list[Outcome]:
    """Outcomes in the order of the tunings; equal networks are trained once.

    Raises:
        OptionError: a folder holds a run with other settings.
    """
    distinct = {tuning.folder: tuning for tuning in tunings}
    known = {folder: tuning.record for folder, tuning in distinct.items()}
    records: dict[Path, dict[str, Any]] = {}
    for number, (folder, tuning) in enumerate(distinct.items(), start=1):
        done = known[folder]
        if done is None:
            planner = tuning.candidate.planner
            typer.echo(
                f"{number} of {len(distinct)}: {tuning.checkpoint.name}, {planner}", err=True
            )
        records[folder] = done or tuning.run()
    return [Outcome(t.checkpoint.name, t.candidate, records[t.folder]) for t in tunings]


def planner_rows(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """A row for each planner: mean ± standard deviation over checkpoints, and over random draws."""
    rows = []
    for planner, group in grouped(outcomes).items():
        row = {
            "planner": planner,
            "plans": len(group),
            "divergence": mean_and_deviation([o.candidate.divergence for o in group], digits=3),
        }
        for what, when in FIGURES:
            row[f"{what} {when}"] = mean_and_deviation(
                [o.figure(what, when) for o in group], digits=2 if what == "accuracy" else 3
            )
        rows.append(row)
    return rows


def against_random(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """A row for each planner: its difference from the mean of the random plans of the same
    checkpoint (points of accuracy, nats of loss; mean ± standard error over checkpoints), and how
    many of the random plans have lower accuracy (an equal one counts half)."""
    groups = grouped(outcomes)
    drawn = groups.pop(RANDOM)
    rows = []
    for planner, group in groups.items():
        row: dict[str, Any] = {"planner": planner}
        for what, when in FIGURES:
            above, beaten = [], 0.0
            for outcome in group:
                own = outcome.figure(what, when)
                others = [o.figure(what, when) for o in drawn if o.checkpoint == outcome.checkpoint]
                above.append(own - statistics.fmean(others))
                beaten += sum((own > other) + (own == other) / 2 for other in others)
            row[f"{what} {when}"] = mean_and_error(above, digits=2 if what == "accuracy" else 3)
            if what == "accuracy":
                row[f"beats, {when}"] = f"{beaten:g} of {len(drawn)}"
        rows.append(row)
    return rows


def correlations(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """A row for each checkpoint: Spearman's correlation of total divergence with accuracy and with
    loss, over its distinct plans. Where plans of less divergence are better, it is negative with
    accuracy and positive with loss."""
    from scipy.stats import spearmanr

    by_checkpoint: dict[str, dict[str, Outcome]] = {}
    for outcome in outcomes:
        actions = str(sorted(outcome.candidate.actions.items()))
        by_checkpoint.setdefault(outcome.checkpoint, {})[actions] = outcome
    rows = []
    for checkpoint, distinct in by_checkpoint.items():
        row: dict[str, Any] = {"checkpoint": checkpoint, "plans": len(distinct)}
        divergences = [o.candidate.divergence for o in distinct.values()]
        for what, when in FIGURES:
            figures = [o.figure(what, when) for o in distinct.values()]
            varied = len(set(divergences)) > 1 and len(set(figures)) > 1
            found = spearmanr(divergences, figures) if varied else None
            row[f"{what} {when}"] = NOTHING if found is None else round(float(found.statistic), 3)
        rows.append(row)
    return rows


def plan_row(outcome: Outcome) -> dict[str, Any]:
    candidate = outcome.candidate
    return {
        "checkpoint": outcome.checkpoint,
        "share": candidate.share,
        "planner": candidate.planner,
        "sites": " ".join(f"{name}:{a}" for name, a in candidate.actions.items()) or NOTHING,
        "divergence": round(candidate.divergence, 4),
        **{f"{what} {when}": round(outcome.figure(what, when), 4) for what, when in FIGURES},
    }


def grouped(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """By planner, in the order of the outcomes."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.candidate.planner, []).append(outcome)
    return groups


def mean_and_error(values: Sequence[float], *, digits: int) -> str:
    """Mean ± its standard error, with the sign; without the error for one value."""
    mean = f"{statistics.fmean(values):+.{digits}f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {statistics.stdev(values) / math.sqrt(len(values)):.{digits}f}"

"""`ela-probe plan`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ela_probe.system.messages import quoted

from . import console, inputs
from .options import DataOptions, Device, Json, Limit, ModelOptions, Seed
from .outputs import check_output, writing

if TYPE_CHECKING:
    from ela_probe.analysis.result import Analysis
    from ela_probe.checkpoint import Checkpoint
    from ela_probe.pruning.cost_model import CostModel
    from ela_probe.pruning.plan import MeasuredLoss, SkipPlan

PlannerName = Literal[
    "damage", "budget", "cost", "score", "threshold", "random", "alternate", "deepest"
]


def command(
    *,
    analysis: Annotated[
        Path,
        typer.Argument(
            help="A folder that `analyze` wrote.", callback=inputs.ANALYSIS_FOLDER.check
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Plan file. Default: DIR/plan.json.")
    ] = None,
    skip: Annotated[
        float,
        typer.Option(
            help="Share of all retrievals to skip, from 0 to less than 1.",
            callback=inputs.share_of("--skip"),
        ),
    ] = 0.3,
    planner: Annotated[
        PlannerName | None,
        typer.Option(
            help="damage: the least predicted loss change, exactly (default where `analyze` "
            "measured damage). budget: the least total divergence (else the default). "
            "cost: keep, recur, skip or drop at the least charge within --time, by --costs. "
            "score: the highest EBQM skip scores. threshold: all sites below --threshold. "
            "random, alternate, deepest: baselines.",
            show_default=False,
        ),
    ] = None,
    max_loss: Annotated[
        float | None,
        typer.Option(
            help="For --planner damage, instead of --skip: as many retrievals as possible for a "
            "predicted loss change of at most so many nats.",
            show_default=False,
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Divergence in nats, for --planner threshold.", show_default=False),
    ] = None,
    costs: Annotated[
        Path | None,
        typer.Option(
            help="File that `costs` wrote, for --planner cost.",
            callback=inputs.COSTS.check,
            show_default=False,
        ),
    ] = None,
    time: Annotated[
        float | None,
        typer.Option(
            help="For --planner cost: the time of a training step to reach, as a share of the "
            "unpruned model's.",
            callback=inputs.share_of("--time"),
            show_default=False,
        ),
    ] = None,
    action: Annotated[
        Literal["skip", "drop", "recur", "affine"] | None,
        typer.Option(
            help="skip: the layer stays a source of later ones. drop: it does not. recur: it "
            "continues the last retrieval formed (MRLA-B, AttnRes). affine: a scale and a shift "
            "per channel stand in for it. --planner damage (skip or affine) and --planner cost "
            "choose by site.",
            show_default=False,
        ),
    ] = None,
    measure: Annotated[
        Literal["kl", "shape", "js"], typer.Option(help="The divergence to charge.")
    ] = "kl",
    concentration: Annotated[
        float, typer.Option(help="κ of the target distribution of the skip scores.")
    ] = 4.0,
    max_run: Annotated[
        int | None, typer.Option(min=1, help="Skip at most this many in a row.")
    ] = None,
    min_keep: Annotated[
        int,
        typer.Option(
            min=0,
            help="Keep at least this many sites of every stage. With 0 a stage of static or signed "
            "weights may lose all.",
        ),
    ] = 1,
    rounds: Annotated[
        int,
        typer.Option(
            min=1,
            help="For --planner damage: measure damage again on the partly pruned model, so many "
            "times in all. Needs --checkpoint.",
        ),
    ] = 1,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="The analysed checkpoint. With it the stand-ins of the plan are fitted to each "
            "other, on its data, the loss change of the whole plan is measured on samples that "
            "they are not fitted to, and --rounds is possible.",
            callback=inputs.CHECKPOINT.check,
            show_default=False,
        ),
    ] = None,
    data: DataOptions,
    model: ModelOptions,
    limit: Limit = None,
    device: Device = "auto",
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Decide which retrievals to skip, from an analysis.

    By damage (the default where it was measured) a plan has the least predicted loss change; by
    divergence (--planner budget) a skipped site costs its divergence from the last site kept
    before it. The first retrieval of a stage is kept, unless a stand-in takes its place.

        ela-probe plan runs/digits/best-analysis --skip 0.3
        ela-probe plan DIR --max-loss 0.02
        ela-probe plan DIR --skip 0.5 --rounds 4 --checkpoint best.pt
        ela-probe plan DIR --planner threshold --threshold 0.05 -o plan.json
        ela-probe plan DIR --planner cost --costs costs.json --time 0.8
    """
    path = output or analysis / "plan.json"
    check_output(
        path, [costs, checkpoint, inputs.path_of_data(data.data), *inputs.files_of(analysis)]
    )

    from pydantic import ValidationError

    from ela_probe.analysis.result import Analysis
    from ela_probe.errors import OptionError, PlanError
    from ela_probe.pruning.plan import Constraints
    from ela_probe.pruning.planners import make_plan
    from ela_probe.system.validation import explain

    if checkpoint is None and (data.are_given or model.spec() is not None):
        raise OptionError("got data or a model without --checkpoint; give it, or leave them out")
    known = Analysis.load(analysis)
    try:
        constraints = Constraints(max_run=max_run, min_keep=min_keep)
        made = make_plan(
            known,
            skip=skip,
            planner=planner,
            threshold=threshold,
            max_loss=max_loss,
            costs=None if costs is None else load_costs(costs),
            time=time,
            action=action,
            measure=measure,
            concentration=concentration,
            constraints=constraints,
            seed=seed,
        )
        loaded = None if checkpoint is None else model.read(checkpoint)
        if loaded is not None and known.provenance.checkpoint_sha256 not in (None, loaded.sha256):
            raise PlanError(
                f"{checkpoint} is not the checkpoint that {analysis} was made from (its SHA-256 "
                "differs); give the analysed one, or run `ela-probe analyze` on this one"
            )
        opened = data.open(loaded) if loaded is not None and data.are_given else None
        if rounds > 1:
            made = in_rounds(
                known,
                made,
                loaded,
                data=opened,
                rounds=rounds,
                skip=skip,
                action=action,
                constraints=constraints,
                limit=limit,
                device=device,
            )
        if loaded is not None:
            from ela_probe.pipeline.refit import refit_and_measure  # imports torch

            made = refit_and_measure(loaded, made, data=opened, samples=limit, device=device)
    except ValidationError as error:
        raise PlanError(explain(error)) from error
    with writing(path):
        made.save(path)
    if not made.changes:
        console.print_note("note: this plan keeps every retrieval")
    if json:
        console.print_json({"path": path, "share": made.share, **made.model_dump(mode="json")})
        return
    describe(made)
    console.print_line(f"written to {path}")
    console.print_line(f"next: ela-probe prune CHECKPOINT --plan {quoted(path)}")


def in_rounds(
    analysis: "Analysis",
    at_once: "SkipPlan",
    checkpoint: "Checkpoint | None",
    *,
    skip: float,
    action: str | None,
    **options: Any,
) -> "SkipPlan":
    """The plan of several rounds. at_once: the plan of one round, which has checked the options."""
    from ela_probe.errors import OptionError
    from ela_probe.pipeline.rounds import plan_in_rounds

    origin = at_once.origin
    by_share = origin.planner == "damage" and origin.max_loss is None and origin.time_budget is None
    if checkpoint is None or not by_share:
        raise OptionError(
            "--rounds measures again on the partly pruned model: it needs --checkpoint, the "
            "planner damage and a share, --skip, instead of --max-loss or --time"
        )
    return plan_in_rounds(checkpoint, analysis, skip=skip, action=action, **options)  # type: ignore[arg-type]


def measured(loss: "MeasuredLoss") -> str:
    """The measured loss change of a plan in words."""
    from ela_probe.system.numbers import readable

    error = "" if loss.se is None else f" ± {readable(loss.se, digits=1)}"
    return f"{readable(loss.mean)}{error} nats on {loss.samples:,} other {loss.split} samples"


def load_costs(path: Path) -> "CostModel":
    """The measured costs in a file. Raises PlanError when it can't be read."""
    from ela_probe.pruning.cost_model import CostModel  # imports torch

    return CostModel.load(path)


def describe(made: "SkipPlan") -> None:
    """Print the plan."""
    from rich.text import Text

    from ela_probe.system.numbers import readable

    colours = {"skip": "yellow", "drop": "red", "recur": "cyan", "affine": "green"}
    by_damage = made.origin.planner == "damage"
    by_kl = any(stage.kind != "signed" for stage in made.stages)
    by_values = any(stage.kind == "signed" for stage in made.stages)
    rows = [
        [
            site.name,
            Text(site.action, style=colours.get(site.action, "")),
            *([None if site.damage is None else site.damage.mean] if by_damage else []),
            site.reference or "–",
            *([None if site.kl is None else site.kl.mean, site.score] if by_kl else []),
            *([None if site.l2 is None else site.l2.mean] if by_values else []),
        ]
        for stage in made.stages
        for site in stage.sites
    ]
    recurring = list(made.actions.values()).count("recur")
    title = (
        f"{len(made.skipped)} of {len(made.actions)} retrievals skipped ({made.share:.0%}), "
        + (f"{recurring} recur, " if recurring else "")
        + f"{readable(made.charge or 0.0, digits=4)} nats charged in total ({made.origin.planner})"
    )
    if made.origin.predicted_ratio is not None:
        milliseconds = (made.origin.predicted_seconds or 0.0) * 1e3
        title += (
            f"\npredicted: a training step takes {made.origin.predicted_ratio:.3f} of the unpruned "
            f"model's time, {readable(milliseconds, digits=4)} ms on "
            f"{made.origin.timed_on}"
        )
    if made.origin.predicted_loss is not None and made.changes:
        loss = made.origin.predicted_loss
        error = "" if loss.se is None else f" ± {readable(loss.se, digits=1)}"
        title += f"\npredicted: the loss changes by {readable(loss.mean)}{error} nats"
    if made.origin.measured_loss is not None:
        title += f"\nmeasured: it changes by {measured(made.origin.measured_loss)}"
    damage = (">damage",) if by_damage else ()
    columns = (
        *("site", "action", *damage, "compared with"),
        *((">kl", ">score") if by_kl else ()),
        *((">l2",) if by_values else ()),
    )
    console.print_table(title, columns, rows)

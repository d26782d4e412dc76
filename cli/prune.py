"""`ela-probe prune`."""

from pathlib import Path
from typing import Annotated

import typer

from . import console, inputs
from . import plan as plan_command
from .options import CheckpointArgument, DataOptions, Device, Json, ModelOptions
from .outputs import as_argument, beside, check_output, writing


def command(
    *,
    checkpoint: CheckpointArgument,
    plan: Annotated[Path, typer.Option(help="The skip plan.", callback=inputs.PLAN.check)],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Checkpoint. Default: CHECKPOINT-pruned, beside it."),
    ] = None,
    check: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Measure how the loss changed on so many held-out samples, and compare it with "
            "what the plan predicts.",
            show_default=False,
        ),
    ] = None,
    data: DataOptions,
    model: ModelOptions,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Carry out a skip plan: remove the skipped retrievals and their parameters.

    The new checkpoint holds the plan; loading it rebuilds the pruned model.

        ela-probe prune runs/digits/best.pt --plan plan.json -o pruned.pt
        ela-probe prune runs/digits/best.pt --plan plan.json --check 2000
        ela-probe prune hf:DIR --plan DIR-analysis/plan.json
    """
    path = output or beside(checkpoint, "pruned")
    given_files = [checkpoint, plan, inputs.path_of_data(data.data)]
    check_output(path, given_files, made_from=checkpoint)

    from ela_probe.models.registry import parameter_count
    from ela_probe.pipeline.prune import check_loss, prune_checkpoint
    from ela_probe.pruning.plan import SkipPlan
    from ela_probe.system.numbers import readable

    chosen = SkipPlan.load(plan)
    loaded = model.read(checkpoint)
    samples = None if check is None else data.open(loaded)
    with writing(path):
        pruned = prune_checkpoint(loaded, chosen, output=path)
    if not chosen.changes:
        console.print_note(
            f"note: the plan {plan} keeps every retrieval, so {path} holds the same network"
        )
    planned_for = chosen.origin.checkpoint_sha256
    if planned_for is not None and planned_for != loaded.sha256:
        console.print_note(
            f"note: the plan was made from another checkpoint than {checkpoint.name}, with the "
            "same sites"
        )
    checked = None
    if check is not None:
        checked = check_loss(loaded, pruned, check, data=samples, device=device)
    predicted, measured = chosen.origin.predicted_loss, chosen.origin.measured_loss
    before, after = parameter_count(loaded.model), parameter_count(pruned.model)
    if json:
        console.print_json(
            {
                "checkpoint": path,
                "skipped": chosen.skipped,
                "share": chosen.share,
                "parameters": {"before": before, "after": after},
                "predicted_loss": None if predicted is None else predicted.model_dump(),
                "measured_loss": None if measured is None else measured.model_dump(),
                "checked": None if checked is None else checked._asdict(),
            }
        )
        return
    console.print_line(
        f"{len(chosen.skipped)} of {len(chosen.actions)} retrievals removed, parameters "
        f"{before:,} → {after:,}"
    )
    if checked is not None:
        foreseen = ""
        if predicted is not None:
            error = "" if predicted.se is None else f" ± {readable(predicted.se, digits=1)}"
            foreseen = f"; the plan predicts {readable(predicted.mean)}{error}"
        if measured is not None:
            foreseen += f", and measured {plan_command.measured(measured)}"
        console.print_line(
            f"loss {readable(checked.before)} → {readable(checked.after)} on {checked.samples:,} "
            f"held-out samples: {readable(checked.change)} ± {readable(checked.se, digits=1)} "
            f"nats{foreseen}"
        )
    console.print_line(f"written to {path}")
    console.print_line(f"next: ela-probe finetune {as_argument(path)}")

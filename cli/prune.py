"""`ela-probe prune`."""

from pathlib import Path
from typing import Annotated

import typer

from ela_probe.system.messages import quoted

from . import console, inputs
from .options import CheckpointArgument, Json, ModelOptions
from .outputs import check_output, writing


def command(
    *,
    checkpoint: CheckpointArgument,
    plan: Annotated[Path, typer.Option(help="The skip plan.", callback=inputs.PLAN.check)],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Checkpoint. Default: CHECKPOINT-pruned, beside it."),
    ] = None,
    model: ModelOptions,
    json: Json = False,
) -> None:
    """Carry out a skip plan: remove the skipped retrievals and their parameters.

    The new checkpoint holds the plan; loading it rebuilds the pruned model.

        ela-probe prune runs/digits/best.pt --plan plan.json -o pruned.pt
    """
    path = output or checkpoint.with_name(f"{checkpoint.stem}-pruned{checkpoint.suffix}")
    check_output(path, [checkpoint, plan])

    from ela_probe.models.registry import parameter_count
    from ela_probe.pipeline import prune_checkpoint
    from ela_probe.pruning.plan import SkipPlan

    chosen = SkipPlan.load(plan)
    loaded = model.read(checkpoint)
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
    before, after = parameter_count(loaded.model), parameter_count(pruned.model)
    if json:
        console.print_json(
            {
                "checkpoint": path,
                "skipped": chosen.skipped,
                "share": chosen.share,
                "parameters": {"before": before, "after": after},
            }
        )
        return
    console.print_line(
        f"{len(chosen.skipped)} of {len(chosen.actions)} retrievals removed, parameters "
        f"{before:,} → {after:,}"
    )
    console.print_line(f"written to {path}")
    console.print_line(f"next: ela-probe finetune {quoted(path)}")

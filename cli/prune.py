"""`ela-probe prune`."""

from pathlib import Path
from typing import Annotated

import typer

from . import console
from .options import CheckpointArgument, CodePath, Factory, Json, Model, ModelArgs, model_spec


def command(
    checkpoint: CheckpointArgument,
    plan: Annotated[Path, typer.Option(help="The skip plan.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Checkpoint. Default: CHECKPOINT-pruned, beside it."),
    ] = None,
    model: Model = None,
    factory: Factory = None,
    model_args: ModelArgs = None,
    code: CodePath = None,
    json: Json = False,
) -> None:
    """Carry out a skip plan: the skipped retrievals and their parameters are gone.

    The new checkpoint holds the plan; loading it rebuilds the pruned model.

        ela-probe prune runs/digits/best.pt --plan plan.json -o pruned.pt
    """
    from ela_probe.checkpoint import read_checkpoint
    from ela_probe.models.registry import parameter_count
    from ela_probe.pipeline import prune_checkpoint
    from ela_probe.pruning.plan import SkipPlan

    chosen = SkipPlan.load(plan)
    spec = model_spec(model, factory, model_args, code)
    path = output or checkpoint.with_name(f"{checkpoint.stem}-pruned{checkpoint.suffix}")
    before = prune_checkpoint(checkpoint, chosen, output=path, spec=spec)
    made_from = chosen.origin.checkpoint_sha256
    if made_from is not None and made_from != before.sha256:
        console.said(
            f"note: the plan was made from another checkpoint than {checkpoint.name}, with the "
            "same sites"
        )
    pruned = read_checkpoint(path, spec=spec)
    counts = {"before": parameter_count(before.model), "after": parameter_count(pruned.model)}
    console.emit(
        {
            "checkpoint": path,
            "skipped": chosen.skipped,
            "share": chosen.share,
            "parameters": counts,
        },
        as_json=json,
    )
    if not json:
        console.out.print(
            f"{len(chosen.skipped)} of {len(chosen.actions)} retrievals removed, parameters "
            f"{counts['before']:,} → {counts['after']:,}\n"
            f"written to {path}\nnext: ela-probe finetune {path}",
            soft_wrap=True,
        )

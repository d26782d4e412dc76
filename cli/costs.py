"""`ela-probe costs`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import console
from .options import (
    BatchSize,
    CheckpointArgument,
    CodePath,
    Data,
    DataRoot,
    Device,
    Download,
    Factory,
    Json,
    Model,
    ModelArgs,
    Seed,
    checkpoint_data,
    model_spec,
)

if TYPE_CHECKING:
    from ela_probe.pruning.cost_model import CostModel


def command(
    checkpoint: CheckpointArgument,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File. Default: CHECKPOINT-costs.json, beside it."),
    ] = None,
    data: Data = None,
    data_root: DataRoot = None,
    download: Download = False,
    batch_size: BatchSize = 128,
    rounds: Annotated[
        int, typer.Option(min=1, help="In each, every plan that is timed takes one step.")
    ] = 20,
    model: Model = None,
    factory: Factory = None,
    model_args: ModelArgs = None,
    code: CodePath = None,
    device: Device = "auto",
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Measure what keep, recur, skip and drop cost on this device, for `plan --planner cost`.

    Times training steps of the checkpoint's model under plans in which one action prevails in one
    stage, all in alternation, and fits a cost for every action to them. Measure where you will
    train, with the batch size you will train with, on a quiet machine. A cost marked `noise`
    can't be told from 0: take more rounds.

        ela-probe costs runs/digits/best.pt -o costs.json
        ela-probe plan runs/digits/analysis --planner cost --costs costs.json --time 0.8
    """
    import torch

    from ela_probe.checkpoint import read_checkpoint
    from ela_probe.pipeline import check_fit, data_of
    from ela_probe.pruning.measure_costs import measure_costs
    from ela_probe.system.device import resolve_device

    spec = model_spec(model, factory, model_args, code)
    loaded = read_checkpoint(checkpoint, spec=spec)
    samples = checkpoint_data(checkpoint, spec, data, data_root, download)
    samples = samples or data_of(checkpoint, loaded)
    check_fit(loaded.model, samples)
    torch.manual_seed(seed)  # drop path, in the training steps that are timed
    costs = measure_costs(
        loaded.model,
        next(iter(samples.loader("train", batch_size=batch_size, limit=batch_size))),
        device=resolve_device(device),
        rounds=rounds,
        name=loaded.header.model.name,
    )
    path = costs.save(output or checkpoint.with_name(f"{checkpoint.stem}-costs.json"))
    console.emit({"path": path, **costs.model_dump(mode="json")}, as_json=json)
    if not json:
        describe(costs)
        console.out.print(f"written to {path}", soft_wrap=True)
        console.out.print(
            f"next: ela-probe plan ANALYSIS --planner cost --costs {path} --time 0.8",
            soft_wrap=True,
        )


def describe(costs: "CostModel") -> None:
    """The costs on the terminal, a row for each that was measured."""
    machine = costs.machine
    title = (
        f"a training step takes {costs.unpruned.value * 1e3:.4g} ms, "
        f"{costs.base.value / costs.predict({}):.2f} of it with each stage's first retrieval only\n"
        f"batches of {costs.batch_shape[0]} on {machine.device_name}; {costs.rounds} rounds; the "
        f"fit is off by {costs.error:.1%} at most\n"
        "what a site adds, in ms, and its quartiles over the rounds; drop adds nothing"
    )
    columns = ("stage", "sites", "action", ">ms", ">lower", ">upper", "")
    rows = []
    for stage in costs.stages:
        for action, cost in (
            ("keep", stage.keep),
            ("keep, a source", stage.source),
            ("recur", stage.recur),
            ("recur after keep, a source", stage.start),
            ("skip", stage.skip),
        ):
            if cost is not None:
                figures = (value * 1e3 for value in (cost.value, cost.lower, cost.upper))
                noise = "noise" if cost.is_noise(costs.rounds) else ""
                rows.append([stage.name, len(stage.sites), action, *figures, noise])
    console.out.print(console.table(title, columns, rows))

"""`ela-probe costs`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ela_probe.system.messages import quoted

from . import console
from .inputs import path_of_data
from .options import BatchSize, CheckpointArgument, DataOptions, Device, Json, ModelOptions, Seed
from .outputs import beside, check_output, writing

if TYPE_CHECKING:
    from ela_probe.pruning.cost_model import CostModel


def command(
    *,
    checkpoint: CheckpointArgument,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File. Default: CHECKPOINT-costs.json, beside it."),
    ] = None,
    data: DataOptions,
    batch_size: BatchSize = None,
    rounds: Annotated[
        int, typer.Option(min=1, help="Each takes one step with every timed plan.")
    ] = 20,
    model: ModelOptions,
    device: Device = "auto",
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Measure what keep, recur, skip and drop cost on this device, for `plan --planner cost`.

    Times training steps of the checkpoint's model under plans that use one action in most of one
    stage, all in alternation, and fits a cost for every action to them. Measure on the machine and
    with the batch size you will train with, while nothing else runs. A cost marked `noise` can't
    be told from 0: take more rounds.

        ela-probe costs runs/digits/best.pt -o costs.json
        ela-probe plan runs/digits/analysis --planner cost --costs costs.json --time 0.8
    """
    path = output or beside(checkpoint, "costs", ".json")
    check_output(path, [checkpoint, path_of_data(data.data)])

    import torch

    from ela_probe.pipeline.inputs import batch_size_for, check_data
    from ela_probe.pruning.measure_costs import measure_costs
    from ela_probe.system.device import resolve_device

    loaded = model.read(checkpoint)
    samples = data.open(loaded)
    check_data(loaded.model, samples)
    size = batch_size_for(samples, batch_size, 128)
    torch.manual_seed(seed)  # for drop path in the timed training steps
    costs = measure_costs(
        loaded.model,
        next(iter(samples.loader("train", batch_size=size, limit=size))),
        device=resolve_device(device),
        rounds=rounds,
        name=loaded.header.model.name,
    )
    with writing(path):
        costs.save(path)
    if json:
        console.print_json({"path": path, **costs.model_dump(mode="json")})
        return
    describe(costs)
    console.print_line(f"written to {path}")
    console.print_line(
        f"next: ela-probe plan ANALYSIS --planner cost --costs {quoted(path)} --time 0.8"
    )


def describe(costs: "CostModel") -> None:
    """Print the costs, one row per measured cost."""
    from ela_probe.system.numbers import readable

    machine = costs.machine
    title = (
        f"a training step takes {readable(costs.unpruned.value * 1e3, digits=4)} ms, "
        f"{costs.base.value / costs.predict({}):.2f} of it with only each stage's first retrieval\n"
        f"batches of {costs.batch_shape[0]}, measured on {machine.device_name}, {costs.rounds} "
        f"rounds; the fit is off by {costs.error:.1%} at most\n"
        "what a site adds, in ms, with quartiles over the rounds; drop adds nothing"
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
    console.print_table(title, columns, rows)

"""`ela-probe compare`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import console, inputs
from .options import BatchSize, DataOptions, Device, Json, Limit, ModelOptions, Seed, SplitName
from .outputs import check_output, writing

if TYPE_CHECKING:
    from ela_probe.evaluation.comparison import Comparison


def command(
    *,
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            help="Checkpoints; ratios are relative to the first.", callback=inputs.CHECKPOINT.check
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Also write the JSON to this file.")
    ] = None,
    data: DataOptions,
    split: Annotated[SplitName, typer.Option(help="Samples to measure accuracy on.")] = "test",
    limit: Limit = None,
    batch_size: BatchSize = None,
    repeats: Annotated[int, typer.Option(min=3, help="Timed rounds.")] = 10,
    model: ModelOptions,
    device: Device = "auto",
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Accuracy, size, FLOPs, time and memory of checkpoints, side by side.

    Times are medians, measured in alternation in one run; trust the ratios, not the milliseconds.

        ela-probe compare runs/digits/best.pt pruned.pt tuned.pt
        ela-probe compare hf:DIR hf:DIR-pruned --data text:FILE --context 512
    """
    if output is not None:
        check_output(output, [*checkpoints, inputs.path_of_data(data.data)])

    import torch

    from ela_probe.evaluation.compare import CompareEntry, compare
    from ela_probe.pipeline.inputs import batch_size_for, check_data
    from ela_probe.system.device import resolve_device
    from ela_probe.system.storage import write_json

    loaded = [model.read(path) for path in checkpoints]
    samples = data.open(loaded[0])
    torch.manual_seed(seed)  # for drop path in the timed training steps
    file_names = [path.name for path in checkpoints]
    entries = []
    for checkpoint in loaded:
        check_data(checkpoint.model, samples)
        name = checkpoint.path.name
        if file_names.count(name) > 1:
            name = str(checkpoint.path)
        header = checkpoint.header
        entries.append(CompareEntry(name, checkpoint.model, header.skipped, header.unpruned))
    result = compare(
        entries,
        samples.loader(split, batch_size=batch_size_for(samples, batch_size, 128), limit=limit),
        device=resolve_device(device),
        repeats=repeats,
    )
    document = result.model_dump(mode="json")
    if output is not None:
        with writing(output):
            write_json(output, console.jsonable(document))
    if json:
        console.print_json(document)
    else:
        describe(result, what="sounds" if samples.spec.task == "audio" else "images")


def describe(comparison: "Comparison", *, what: str = "images") -> None:
    """Print the comparison, one column per model; `what` the samples are."""
    headings, rows = comparison.table()
    machine = comparison.machine
    first = comparison.models[0]
    what = what if first.perplexity is None else "sequences"
    title = (
        f"{first.samples:,} {what}; time and memory for batches of {comparison.batch_shape[0]}, "
        f"measured on {machine.device_name}"
    )
    columns = ["", *(f">{row[0]}" for row in rows)]
    figures = zip(headings[1:], *(row[1:] for row in rows), strict=True)
    console.print_table(title, columns, figures)

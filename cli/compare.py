"""`ela-probe compare`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import console
from .options import (
    BatchSize,
    CodePath,
    Data,
    DataRoot,
    Device,
    Download,
    Factory,
    Json,
    Limit,
    Model,
    ModelArgs,
    Seed,
    SplitName,
    checkpoint_data,
    model_spec,
)

if TYPE_CHECKING:
    from ela_probe.evaluation.compare import Comparison


def command(
    checkpoints: Annotated[
        list[Path], typer.Argument(help="Checkpoints; ratios are to the first.")
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Also write the JSON here.")
    ] = None,
    data: Data = None,
    data_root: DataRoot = None,
    download: Download = False,
    split: Annotated[SplitName, typer.Option(help="Samples to measure accuracy on.")] = "test",
    limit: Limit = None,
    batch_size: BatchSize = 128,
    repeats: Annotated[int, typer.Option(min=3, help="Timed rounds.")] = 10,
    model: Model = None,
    factory: Factory = None,
    model_args: ModelArgs = None,
    code: CodePath = None,
    device: Device = "auto",
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Accuracy, size, FLOPs, time and memory of checkpoints, side by side.

    Times are medians, measured in alternation in one run; trust the ratios, not the milliseconds.

        ela-probe compare runs/digits/best.pt pruned.pt tuned.pt
    """
    import torch

    from ela_probe.checkpoint import read_checkpoint
    from ela_probe.evaluation.compare import CompareEntry, compare
    from ela_probe.pipeline import check_fit, data_of
    from ela_probe.system.device import resolve_device
    from ela_probe.system.storage import write_json

    spec = model_spec(model, factory, model_args, code)
    loaded = [read_checkpoint(path, spec=spec) for path in checkpoints]
    images = checkpoint_data(checkpoints[0], spec, data, data_root, download)
    images = images or data_of(checkpoints[0], loaded[0])
    torch.manual_seed(seed)  # drop path, in the training steps that are timed
    entries = []
    for path, checkpoint in zip(checkpoints, loaded, strict=True):
        check_fit(checkpoint.model, images)
        name = path.name if [p.name for p in checkpoints].count(path.name) == 1 else str(path)
        entries.append(CompareEntry(name, checkpoint.model, checkpoint.header.skipped))
    result = compare(
        entries,
        images.loader(split, batch_size=batch_size, limit=limit),
        device=resolve_device(device),
        repeats=repeats,
    )
    document = result.model_dump(mode="json")
    if output is not None:
        write_json(output, console.plain(document))
    console.emit(document, as_json=json)
    if not json:
        describe(result)


def describe(comparison: "Comparison") -> None:
    """The comparison on the terminal, a column a model; ratios are to the first."""
    headings, rows = comparison.table()
    machine = comparison.machine
    first = comparison.models[0]
    what = "images" if first.perplexity is None else "sequences"
    title = (
        f"{first.samples:,} {what}; time and memory of batches of {comparison.batch_shape[0]} on "
        f"{machine.device_name}"
    )
    columns = ["", *(f">{row[0]}" for row in rows)]
    figures = zip(headings[1:], *(row[1:] for row in rows), strict=True)
    console.out.print(console.table(title, columns, figures))

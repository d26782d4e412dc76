"""`ela-probe discover`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import console
from .options import (
    CheckpointArgument,
    Data,
    DataRoot,
    Factory,
    Json,
    Model,
    ModelArgs,
    checkpoint_data,
    model_spec,
)

if TYPE_CHECKING:
    from ela_probe.checkpoint import Checkpoint
    from ela_probe.discovery import Discovery
    from ela_probe.models import ModelSpec


def command(
    checkpoint: CheckpointArgument,
    data: Data = None,
    data_root: DataRoot = None,
    input_size: Annotated[
        str | None,
        typer.Option(help="Size of one input, e.g. 3,32,32, in place of data.", show_default=False),
    ] = None,
    model: Model = None,
    factory: Factory = None,
    model_args: ModelArgs = None,
    json: Json = False,
) -> None:
    """List where a model retrieves from earlier layers, how that was found, what else attends.

    Known families are read by an adapter; any other model is observed in a forward pass.

        ela-probe discover runs/digits/best.pt
        ela-probe discover weights.pth --factory package.module:build --input-size 3,32,32
    """
    from ela_probe.checkpoint import read_checkpoint
    from ela_probe.discovery import discover

    spec = model_spec(model, factory, model_args)
    loaded = read_checkpoint(checkpoint, spec=spec)
    inputs = example_inputs(checkpoint, loaded, spec, input_size, data, data_root)
    found = discover(loaded.model, inputs)
    document = described(found)
    console.emit(document, as_json=json)
    if not json:
        show(document, type(loaded.model).__name__)


def example_inputs(
    checkpoint: Path,
    loaded: "Checkpoint",
    spec: "ModelSpec | None",
    input_size: str | None,
    data: str | None,
    data_root: Path | None,
) -> Any:
    """Two random inputs as large as --input-size, --data or the checkpoint says; else None.

    Raises:
        OptionError: --input-size is no list of positive whole numbers.
    """
    import torch

    from ela_probe.errors import OptionError

    if input_size is not None:
        try:
            size = [int(part) for part in input_size.split(",")]
        except ValueError:
            size = []
        if not size or min(size) < 1:
            raise OptionError(f"--input-size {input_size!r} came; expected e.g. 3,32,32")
    else:
        images = checkpoint_data(checkpoint, spec, data, data_root, False)
        known = images.spec if images is not None else loaded.header.data
        if known is None:
            return None
        size = [known.channels, known.image_size, known.image_size]
    return torch.randn(2, *size, generator=torch.Generator().manual_seed(0))


def described(found: "Discovery") -> dict[str, Any]:
    """What was found, as JSON knows it."""
    return {
        "adapter": found.adapter.name,
        "stages": [
            {
                "name": stage.name,
                "kind": stage.kind,
                "sites": [
                    {
                        "name": site.name,
                        "sources": site.sources,
                        "how": found.found[site.name].how,
                        "shape": found.found[site.name].shape,
                        "axis": found.found[site.name].axis,
                    }
                    for site in stage.sites
                ],
            }
            for stage in found.stages
        ],
        "bystanders": [
            {"name": b.name, "what": b.what, "reason": b.reason} for b in found.bystanders
        ],
    }


def show(document: dict[str, Any], model: str) -> None:
    """The stages and the bystanders on the terminal."""
    count = sum(len(stage["sites"]) for stage in document["stages"])
    columns = ("stage", "kind", "site", ">sources", "weights", ">source axis", "found by")
    rows = [
        [
            stage["name"],
            stage["kind"],
            site["name"],
            site["sources"],
            "–" if site["shape"] is None else str(list(site["shape"])),
            site["axis"],
            site["how"],
        ]
        for stage in document["stages"]
        for site in stage["sites"]
    ]
    title = f"{model}: {count} retrievals in {len(document['stages'])} stages"
    console.out.print(console.table(title, columns, rows))
    for other in document["bystanders"]:
        console.out.print(
            f"no layer attention: {other['name']} ({other['what']}), {other['reason']}",
            markup=False,
        )

"""`ela-probe discover`."""

from typing import TYPE_CHECKING, Any

from ela_probe.system.numbers import counted

from . import console
from .options import (
    CheckpointArgument,
    DataOptions,
    InputOptions,
    Json,
    ModelOptions,
    Seed,
    SitesFile,
)
from .spread_options import SpreadOptions

if TYPE_CHECKING:
    from ela_probe.discovery.discover import Discovery


def command(
    *,
    checkpoint: CheckpointArgument,
    data: DataOptions,
    inputs: InputOptions,
    sites: SitesFile = None,
    model: ModelOptions,
    spread: SpreadOptions,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """List where a model retrieves from earlier layers, how that was found, what else attends.

    Known families are read by an adapter; any other model is observed in a forward pass.

        ela-probe discover runs/digits/best.pt
        ela-probe discover weights.pth --factory package.module:build --input-size 3,32,32
        ela-probe discover hf:DIR
    """
    from ela_probe.discovery.declared import DeclaredAdapter
    from ela_probe.discovery.discover import discover
    from ela_probe.forward import first_samples, inputs_and_labels
    from ela_probe.pretrained import example_tokens

    batches = inputs.build(path=model.path, data=data, limit=None, batch_size=2, seed=seed)
    loaded = model.read(checkpoint, spread=spread.spread())
    example: Any = None
    if batches is not None:
        first = next(iter(batches))
        example = first_samples(inputs_and_labels(first, labelled=batches.labelled)[0], 2)
    elif data.are_given:
        example = data.open(loaded).spec.example()[0]
    elif loaded.header.data is not None:
        example = loaded.header.data.example()[0]
    elif loaded.is_directory:
        example = example_tokens(loaded.model)
    if sites is not None:
        found = DeclaredAdapter.load(sites).discover(loaded.model, example)
    else:
        found = discover(loaded.model, example)
    document = as_document(found)
    if json:
        console.print_json(document)
    else:
        describe(document, type(loaded.model).__name__)


def as_document(found: "Discovery") -> dict[str, Any]:
    """The discovery in JSON's types."""
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
                        "how": getattr(found.found.get(site.name), "how", "declared"),
                        "shape": getattr(found.found.get(site.name), "shape", None),
                        "axis": getattr(found.found.get(site.name), "axis", site.axis),
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


def describe(document: dict[str, Any], model: str) -> None:
    """Print the stages and the bystanders."""
    count = sum(len(stage["sites"]) for stage in document["stages"])
    stages = counted(len(document["stages"]), "stage")
    console.print_paragraph(f"{model}: {counted(count, 'retrieval')} in {stages}")
    for stage in document["stages"]:
        ways = sorted({site["how"] for site in stage["sites"]})
        title = f"{stage['name']} ({stage['kind']} weights), found by {'; '.join(ways)}"
        columns = ("site", ">sources", "weights", ">source axis")
        rows = [
            [
                site["name"],
                site["sources"],
                "–" if site["shape"] is None else " x ".join(map(str, site["shape"])),
                site["axis"],
            ]
            for site in stage["sites"]
        ]
        console.print_table(title, columns, rows)
    for other in document["bystanders"]:
        console.print_paragraph(
            f"no layer attention: {other['name']} ({other['what']}), {other['reason']}"
        )

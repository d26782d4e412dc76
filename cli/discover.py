"""`ela-probe discover`."""

from typing import TYPE_CHECKING, Any

from . import console
from .options import (
    CheckpointArgument,
    CodePath,
    Data,
    DataRoot,
    ExampleBatches,
    Factory,
    InputDtype,
    InputHigh,
    InputSize,
    Json,
    Model,
    ModelArgs,
    Seed,
    SitesFile,
    checkpoint_data,
    chosen_inputs,
    model_spec,
)

if TYPE_CHECKING:
    from ela_probe.discovery.discover import Discovery


def command(
    checkpoint: CheckpointArgument,
    data: Data = None,
    data_root: DataRoot = None,
    input_size: InputSize = None,
    input_dtype: InputDtype = "float32",
    input_high: InputHigh = None,
    example_inputs: ExampleBatches = None,
    sites: SitesFile = None,
    model: Model = None,
    factory: Factory = None,
    model_args: ModelArgs = None,
    code: CodePath = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """List where a model retrieves from earlier layers, how that was found, what else attends.

    Known families are read by an adapter; any other model is observed in a forward pass.

        ela-probe discover runs/digits/best.pt
        ela-probe discover weights.pth --factory package.module:build --input-size 3,32,32
    """
    from ela_probe.checkpoint import read_checkpoint
    from ela_probe.discovery.declared import DeclaredAdapter
    from ela_probe.discovery.discover import discover
    from ela_probe.forward import first_samples

    spec = model_spec(model, factory, model_args, code)
    chosen = chosen_inputs(
        input_size,
        input_dtype,
        input_high,
        example_inputs,
        path=code,
        data=data,
        limit=None,
        batch_size=2,
        seed=seed,
    )
    loaded = read_checkpoint(checkpoint, spec=spec)
    inputs: Any = None
    if chosen is not None:
        inputs = first_samples(next(iter(chosen)), 2)
    else:
        opened = checkpoint_data(checkpoint, spec, data, data_root, False)
        known = opened.spec if opened is not None else loaded.header.data
        if known is not None:
            inputs = known.example()[0]
    if sites is not None:
        found = DeclaredAdapter.load(sites).discover(loaded.model, inputs)
    else:
        found = discover(loaded.model, inputs)
    document = described(found)
    console.emit(document, as_json=json)
    if not json:
        show(document, type(loaded.model).__name__)


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


def show(document: dict[str, Any], model: str) -> None:
    """The stages and the bystanders on the terminal."""
    count = sum(len(stage["sites"]) for stage in document["stages"])
    stages = len(document["stages"])
    console.out.print(
        f"{model}: {count} retrievals in {stages} stage{'s' if stages != 1 else ''}", markup=False
    )
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
        console.out.print(console.table(title, columns, rows))
    for other in document["bystanders"]:
        console.out.print(
            f"no layer attention: {other['name']} ({other['what']}), {other['reason']}",
            markup=False,
        )

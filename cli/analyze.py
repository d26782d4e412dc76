"""`ela-probe analyze`."""

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
    Devices,
    Download,
    Every,
    ExampleBatches,
    Factory,
    ImageSize,
    InputDtype,
    InputHigh,
    InputSize,
    Json,
    Limit,
    MaxBatches,
    MaxTokens,
    Model,
    ModelArgs,
    NumNodes,
    Seed,
    SitesFile,
    SplitName,
    Workers,
    checkpoint_data,
    chosen_inputs,
    model_spec,
)

if TYPE_CHECKING:
    from ela_probe.analysis.result import Analysis


def command(
    checkpoint: CheckpointArgument,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder. Default: CHECKPOINT-analysis, beside it."),
    ] = None,
    data: Data = None,
    data_root: DataRoot = None,
    download: Download = False,
    split: Annotated[SplitName, typer.Option(help="Samples to analyse, unaugmented.")] = "train",
    limit: Limit = None,
    image_size: ImageSize = None,
    input_size: InputSize = None,
    input_dtype: InputDtype = "float32",
    input_high: InputHigh = None,
    example_inputs: ExampleBatches = None,
    sites: SitesFile = None,
    model: Model = None,
    factory: Factory = None,
    model_args: ModelArgs = None,
    code: CodePath = None,
    batch_size: BatchSize = 256,
    workers: Workers = None,
    every: Every = 1,
    max_batches: MaxBatches = None,
    max_tokens: MaxTokens = None,
    figures: Annotated[bool, typer.Option(help="Draw the figures.")] = True,
    device: Device = "auto",
    devices: Devices = None,
    num_nodes: NumNodes = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Measure how alike a checkpoint's retrievals are.

    Writes analysis.json, pairs.csv, sites.csv, arrays.npz and figures/*.png, and says in words
    which retrievals are redundant. `Analysis.load(DIR)` opens it in Python.

        ela-probe analyze runs/digits/best.pt
        ela-probe analyze weights.pth --model mrla_b_resnet56 --data npz:DIR/cifar10 --limit 10000
        ela-probe analyze best.pth.tar --factory models:net --path REPO --input-size 3,224,224
    """
    from ela_probe.discovery.declared import DeclaredAdapter
    from ela_probe.pipeline import analyze_checkpoint
    from ela_probe.report.plots import save_figures
    from ela_probe.system.processes import Processes, is_first, shutdown
    from ela_probe.system.storage import output_directory

    processes = Processes.from_options(devices, num_nodes, device=device)
    spec = model_spec(model, factory, model_args, code)
    inputs = chosen_inputs(
        input_size, input_dtype, input_high, example_inputs,
        path=code, data=data, limit=limit, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    declared = None if sites is None else DeclaredAdapter.load(sites)
    images = None
    if inputs is None:
        images = checkpoint_data(checkpoint, spec, data, data_root, download, image_size=image_size)
    folder = output or checkpoint.parent / f"{checkpoint.stem}-analysis"
    existed = folder.exists()
    output_directory(folder)
    try:
        analysis = analyze_checkpoint(
            checkpoint,
            data=images,
            inputs=inputs,
            sites=declared,
            spec=spec,
            split=split,
            limit=limit,
            batch_size=batch_size,
            num_workers=workers,
            every=every,
            max_batches=max_batches,
            max_tokens=max_tokens,
            device=device,
            processes=processes,
        )
    except BaseException:
        if not existed and is_first():
            folder.rmdir()
        raise
    if not shutdown():
        return
    for note in analysis.provenance.notes:
        console.said(f"note: {note}")
    analysis.save(folder)
    drawn = save_figures(analysis, folder / "figures") if figures else []
    console.emit(
        {
            "directory": folder,
            "figures": drawn,
            **analysis.summary(),
            "sites": analysis.sites.to_dict("records"),
        },
        as_json=json,
    )
    if not json:
        describe(analysis, folder)


def describe(analysis: "Analysis", folder: Path) -> None:
    """The analysis on the terminal: a table of the sites and what it means."""
    from ela_probe.analysis.findings import findings

    source = analysis.provenance
    accuracy = "" if source.accuracy is None else f", accuracy {source.accuracy:.2%}"
    what = "samples" if source.split is None else "images"
    if source.perplexity is not None:
        what, accuracy = "sequences", f"{accuracy}, perplexity {source.perplexity:.3f}"
    columns = ("site", ">kl ± se", ">shape", ">mass", ">quantile", ">score")
    rows = [
        [
            row["site"],
            f"{row['kl']:.3g} ± {row['kl_se']:.1g}" if row["t"] else "–",
            *(f"{row[name]:.3g}" if row["t"] else "–" for name in ("shape", "mass")),
            *(console.show(float(row[name])) for name in ("quantile", "score")),
        ]
        for row in analysis.sites.to_dict("records")
    ]
    kinds = " and ".join(sorted({part.stage.kind for part in analysis.stages}))
    title = (
        f"{source.model or 'model'} on {source.data or 'data'} ({source.split or 'all'}): "
        f"{source.samples:,} {what}{accuracy}\n"
        f"divergence of each retrieval from the one before it, in nats ({kinds} weights)"
    )
    console.out.print(console.table(title, columns, rows))
    for finding in findings(analysis):
        console.out.print(f"• {finding.text}", markup=False)
    console.out.print(
        f"written to {folder}\nnext: ela-probe plan {folder} --skip 0.3", soft_wrap=True
    )

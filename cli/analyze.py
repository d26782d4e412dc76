"""`ela-probe analyze`."""

import math
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import console
from .inputs import path_of_data
from .options import (
    BatchSize,
    CheckpointArgument,
    DataOptions,
    ImageSize,
    InputOptions,
    Json,
    Limit,
    ModelOptions,
    ProcessOptions,
    SamplingOptions,
    Seed,
    SitesFile,
    SplitName,
    Workers,
)
from .outputs import beside, check_output_folder, writing_folder
from .spread_options import SpreadOptions

if TYPE_CHECKING:
    from ela_probe.analysis.result import Analysis

RESULTS = ("analysis.json", "pairs.csv", "sites.csv", "arrays.npz", "figures")


def command(
    *,
    checkpoint: CheckpointArgument,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder. Default: CHECKPOINT-analysis, beside it."),
    ] = None,
    data: DataOptions,
    split: Annotated[SplitName, typer.Option(help="Samples to analyse, unaugmented.")] = "train",
    limit: Limit = None,
    image_size: ImageSize = None,
    inputs: InputOptions,
    sites: SitesFile = None,
    model: ModelOptions,
    spread: SpreadOptions,
    batch_size: BatchSize = None,
    workers: Workers = None,
    sampling: SamplingOptions,
    damage: Annotated[
        bool,
        typer.Option(
            help="Measure what each action at each site would add to the loss: one backward pass a "
            "batch, two to three times the time. Needs labels."
        ),
    ] = True,
    figures: Annotated[bool, typer.Option(help="Draw the figures.")] = True,
    hardware: ProcessOptions,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Measure how alike a checkpoint's retrievals are, and what skipping each would cost.

    Writes analysis.json, pairs.csv, sites.csv, arrays.npz and figures/*.png, and says in words
    what the retrievals are worth and which are alike. `Analysis.load(DIR)` opens it in Python.

        ela-probe analyze runs/digits/best.pt
        ela-probe analyze weights.pth --model mrla_b_resnet56 --data npz:DIR/cifar10 --limit 10000
        ela-probe analyze hf:DIR --data text:FILE --device-map auto --no-damage --max-tokens 64
        ela-probe analyze best.pth.tar --factory models:net --path REPO --input-size 3,224,224
    """
    folder = output or beside(checkpoint, "analysis", "")
    check_output_folder(folder, RESULTS, [checkpoint, sites, path_of_data(data.data)])

    from ela_probe.analysis.findings import next_command, recommended_share
    from ela_probe.discovery.declared import DeclaredAdapter
    from ela_probe.errors import OptionError
    from ela_probe.pipeline.analyze import analyze_checkpoint
    from ela_probe.report.plots import save_figures
    from ela_probe.spreading import NO_DAMAGE
    from ela_probe.system.processes import is_first, shutdown
    from ela_probe.system.storage import output_directory

    processes, spread_over = hardware.processes(), spread.spread()
    if spread_over is not None and damage:
        raise OptionError(NO_DAMAGE)
    if spread_over is not None and processes.count > 1:
        raise OptionError("got --device-map with several processes; take one (--devices 1)")
    batches = inputs.build(
        path=model.path,
        data=data,
        image_size=image_size,
        limit=limit,
        batch_size=batch_size or 256,
        seed=seed,
    )
    declared = None if sites is None else DeclaredAdapter.load(sites)
    loaded = model.read(checkpoint, spread=spread_over)
    samples = None
    if batches is None and (data.are_given or image_size is not None):
        samples = data.open(loaded, image_size=image_size)
    existed = folder.exists()
    output_directory(folder)
    try:
        analysis = analyze_checkpoint(
            loaded,
            data=samples,
            inputs=batches,
            sites=declared,
            split=split,
            limit=limit,
            damage=damage,
            batch_size=batch_size,
            num_workers=workers,
            every=sampling.every,
            max_batches=sampling.max_batches,
            max_tokens=sampling.max_tokens,
            device=hardware.device,
            processes=processes,
        )
    except BaseException:
        if not existed and is_first():
            folder.rmdir()
        raise
    if not shutdown():
        return
    for note in analysis.provenance.notes:
        if note != loaded.note:  # printed when the file was read
            console.print_note(f"note: {note}")
    with writing_folder(folder, RESULTS):
        analysis.save(folder)
        drawn = save_figures(analysis, folder / "figures") if figures else []
    command = next_command(analysis, folder)
    if json:
        console.print_json(
            {
                "directory": folder,
                "figures": drawn,
                "recommended_share": recommended_share(analysis),
                "next": command,
                **analysis.summary(),
                "sites": analysis.sites.to_dict("records"),
            }
        )
        return
    describe(analysis)
    console.print_line(f"written to {folder}")
    if command is not None:
        console.print_line(f"next: {command}")


def describe(analysis: "Analysis") -> None:
    """Print a table of the sites and what it means."""
    from ela_probe.analysis.findings import findings
    from ela_probe.system.numbers import readable

    source = analysis.provenance
    accuracy = "" if source.accuracy is None else f", accuracy {source.accuracy:.2%}"
    of_split = "sounds" if (source.data or "").startswith("audio:") else "images"
    what = "samples" if source.split is None else of_split
    if source.perplexity is not None:
        what, accuracy = "sequences", f"{accuracy}, perplexity {source.perplexity:.3f}"
    if source.precision is not None and source.precision.box.ap is not None:
        accuracy = f"{accuracy}, AP {source.precision.box.ap:.2%}"
    sites = analysis.sites
    by_kl, by_values = "kl" in analysis.measures, "l2" in analysis.measures
    columns = ["site", *([">kl ± se", ">shape", ">mass", ">quantile", ">score"] if by_kl else [])]
    columns += [">l2 ± se", ">1 − cosine"] if by_values else []
    stood_in = analysis.has_damage and bool(sites["damage_affine"].notna().any())
    if analysis.has_damage:
        columns[1:1] = [">damage", ">± se", *([">with stand-in"] if stood_in else [])]
    rows = []
    for row in sites.to_dict("records"):
        cells = [row["site"]]
        if analysis.has_damage:
            cells += [
                readable(row["damage_skip"]),
                readable(row["damage_skip_se"], digits=1),
                *([readable(row["damage_affine"])] if stood_in else []),
            ]
        if by_kl:
            cells += [
                with_error(row, "kl"),
                *(readable(row[name] if row["t"] else None) for name in ("shape", "mass")),
                *(readable(row[name]) for name in ("quantile", "score")),
            ]
        if by_values:
            cells += [with_error(row, "l2"), readable(row["cosine"] if row["t"] else None)]
        rows.append(cells)
    kinds = " and ".join(sorted({part.stage.kind for part in analysis.stages}))
    title = (
        f"{source.model or 'model'} on {source.data or 'data'} ({source.split or 'all'}): "
        f"{source.samples:,} {what}{accuracy}\n"
        + (
            "damage: what skipping a retrieval adds to the loss, in nats, as predicted\n"
            if analysis.has_damage
            else ""
        )
        + "\n".join(
            line
            for line, is_shown in (
                ("divergence of each retrieval from the one before it, in nats", by_kl),
                ("l2, cosine: distance of its mixed values from those before, relative", by_values),
            )
            if is_shown
        )
        + f" ({kinds} weights)"
    )
    console.print_table(title, columns, rows)
    for finding in findings(analysis):
        console.print_paragraph(f"• {finding.text}")


def with_error(row: Mapping[Hashable, Any], measure: str) -> str:
    """A measure of a site with its standard error; a dash where the site has none."""
    from ela_probe.system.numbers import readable

    mean = row[measure]
    if not row["t"] or not math.isfinite(mean):
        return "–"
    return f"{readable(mean)} ± {readable(row[f'{measure}_se'], digits=1)}"

"""`ela-probe demo`."""

from pathlib import Path
from typing import Annotated

import typer

from ela_probe.system.messages import quoted

from . import analyze, console, inputs, plan
from . import compare as compare_command
from .options import Device, Json, Seed
from .outputs import writing_folder

RESULTS = ("train", "analysis", "pruned.pt", "tuned.pt", "tuned-run", "comparison.json")


def command(
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for all results.")] = Path(
        "runs/demo"
    ),
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of training.")] = 5,
    tune_epochs: Annotated[int, typer.Option(min=1, help="Epochs of fine-tuning.")] = 2,
    skip: Annotated[
        float,
        typer.Option(help="Share of all retrievals to skip.", callback=inputs.share_of("--skip")),
    ] = 0.3,
    seed: Seed = 0,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Run all steps on small real images: train, analyse, plan, prune, fine-tune, compare.

    Trains a ResNet-20 with MRLA-B on scikit-learn's digits. Nothing is downloaded; it takes
    about two minutes on two cores.
    """
    with writing_folder(output, RESULTS):
        run(output, epochs, tune_epochs, skip, seed, device, json)


def run(
    output: Path, epochs: int, tune_epochs: int, skip: float, seed: int, device: str, json: bool
) -> None:
    """Run the verbs one after the other, each on the files of the one before."""
    from rich.text import Text

    from ela_probe.checkpoint import read_checkpoint
    from ela_probe.data.opening import open_data
    from ela_probe.evaluation.compare import CompareEntry, compare
    from ela_probe.models.registry import ModelSpec
    from ela_probe.pipeline.analyze import analyze_checkpoint
    from ela_probe.pipeline.prune import prune_checkpoint
    from ela_probe.pipeline.refit import refit_and_measure
    from ela_probe.pipeline.train import finetune, train
    from ela_probe.pruning.planners import make_plan
    from ela_probe.report.history import History
    from ela_probe.report.page import write_report
    from ela_probe.report.plots import save_figures
    from ela_probe.system.device import resolve_device
    from ela_probe.system.storage import write_json
    from ela_probe.training.config import TrainConfig

    def step(number: int, title: str, verb: str) -> None:
        console.stderr().rule(
            Text.assemble((f"{number}/6 {title}", "bold"), (f"  ela-probe {verb}", "dim")),
            align="left",
        )

    images = open_data("digits", seed=seed)
    folder = output / "analysis"
    best, pruned, tuned = output / "train" / "best.pt", output / "pruned.pt", output / "tuned.pt"

    step(1, "train a ResNet-20 with MRLA-B on the digits", "train")
    trained = train(
        ModelSpec(name="mrla_b_resnet20"),
        images,
        TrainConfig.of(epochs=epochs, batch_size=32, lr=0.03, warmup_epochs=0.5, seed=seed),
        output=output / "train",
        device=device,
    )
    step(2, "analyse its retrievals", "analyze")
    analysis = analyze_checkpoint(read_checkpoint(best), data=images, device=device)
    analysis.save(folder)
    save_figures(analysis, folder / "figures")
    if not json:
        analyze.describe(analysis)
    step(3, "plan what to skip", "plan")
    made = make_plan(analysis, skip=skip, seed=seed)
    made = refit_and_measure(read_checkpoint(best), made, data=images, device=device)
    made.save(folder / "plan.json")
    if not json:
        plan.describe(made)
    step(4, "prune", "prune")
    smaller = prune_checkpoint(read_checkpoint(best), made, output=pruned)
    step(5, "fine-tune the pruned model", "finetune")
    finetune(
        smaller,
        TrainConfig.for_finetuning(epochs=tune_epochs, batch_size=32, lr=0.01, seed=seed),
        output=tuned,
        data=images,
        device=device,
    )
    step(6, "compare", "compare")
    checkpoints = {"trained": best, "pruned": pruned, "tuned": tuned}
    entries = []
    for name, path in checkpoints.items():
        loaded = read_checkpoint(path)
        header = loaded.header
        entries.append(CompareEntry(name, loaded.model, header.skipped, header.unpruned))
    compared = compare(
        entries, images.loader("test", batch_size=64), device=resolve_device(device), repeats=5
    )
    document = compared.model_dump(mode="json")
    write_json(output / "comparison.json", console.jsonable(document))
    page = write_report(
        analysis,
        folder / "report.html",
        plan=made,
        comparison=compared,
        history=History.load(trained.log),
    )
    if json:
        console.print_json(
            {
                "checkpoints": checkpoints,
                "analysis": folder,
                "plan": folder / "plan.json",
                "report": page,
                "training_seconds": trained.seconds,
                "share": made.share,
                "comparison": document,
            }
        )
        return
    compare_command.describe(compared)
    before, after = compared.models[0].accuracy, compared.models[-1].accuracy
    console.print_line(
        f"test accuracy {before:.2%} before, {after:.2%} after skipping {made.share:.0%} of the "
        "retrievals and fine-tuning"
    )
    places = {
        "checkpoints": ", ".join(str(path) for path in checkpoints.values()),
        "analysis and figures": folder,
        "plan": folder / "plan.json",
        "report": page,
        "notebook": f"`ela-probe notebook {quoted(folder)}` explores the analysis",
    }
    for what, where in places.items():
        console.print_line(f"{what}: {where}")

"""`ela-probe finetune`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import (
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
    Workers,
    checkpoint_data,
    model_spec,
)
from .train import Precision, report


def command(
    checkpoint: CheckpointArgument,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Checkpoint. Default: CHECKPOINT-tuned, beside it."),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 10,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a step.")] = 128,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 0.01,
    warmup: Annotated[float, typer.Option(min=0, help="Epochs of linear warm-up.")] = 0,
    weight_decay: Annotated[float, typer.Option(help="On all parameters.")] = 5e-4,
    label_smoothing: Annotated[float, typer.Option(help="0 to less than 1.")] = 0,
    precision: Annotated[Precision, typer.Option(help="16-mixed needs a GPU.")] = "32-true",
    data: Data = None,
    data_root: DataRoot = None,
    download: Download = False,
    model: Model = None,
    factory: Factory = None,
    model_args: ModelArgs = None,
    code: CodePath = None,
    workers: Workers = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after an interruption.")] = False,
    seed: Seed = 0,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Train a (pruned) checkpoint further, with a smaller schedule.

    The best weights go to the output file; the log and the resumable state into OUTPUT-run/.

        ela-probe finetune pruned.pt -o tuned.pt --epochs 5
    """
    from ela_probe.pipeline import finetune
    from ela_probe.training import TrainConfig

    config = TrainConfig.for_finetuning(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        warmup_epochs=warmup,
        weight_decay=weight_decay,
        label_smoothing=label_smoothing,
        precision=precision,
        seed=seed,
        num_workers=workers,
    )
    spec = model_spec(model, factory, model_args, code)
    images = checkpoint_data(checkpoint, spec, data, data_root, download)
    path = output or checkpoint.with_name(f"{checkpoint.stem}-tuned{checkpoint.suffix}")
    result = finetune(
        checkpoint, config, output=path, data=images, spec=spec, device=device, resume=resume
    )
    report(result, path, json)

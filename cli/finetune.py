"""`ela-probe finetune`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import (
    ChannelsLast,
    CheckpointArgument,
    CodePath,
    Data,
    DataRoot,
    Device,
    Devices,
    Download,
    Factory,
    Json,
    Model,
    ModelArgs,
    NumNodes,
    Seed,
    StrategyName,
    Workers,
    checkpoint_data,
    model_spec,
)
from .train import Precision, given, report


def command(
    checkpoint: CheckpointArgument,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Checkpoint. Default: CHECKPOINT-tuned, beside it."),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Passes over the training samples; default: 10, of text 1."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Samples a step; default: 128, of text 32.")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Highest learning rate; default: 0.01, of text 0.0005.")
    ] = None,
    warmup: Annotated[
        float | None, typer.Option(min=0, help="Epochs of linear warm-up; default: 0, of text 0.1.")
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="SGD: on all parameters, default 5e-4; of text 0.1.")
    ] = None,
    label_smoothing: Annotated[float, typer.Option(help="0 to less than 1.")] = 0,
    precision: Annotated[Precision, typer.Option(help="16-mixed needs a GPU.")] = "32-true",
    channels_last: ChannelsLast = None,
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
    devices: Devices = None,
    num_nodes: NumNodes = None,
    strategy: StrategyName = "ddp",
    json: Json = False,
) -> None:
    """Train a (pruned) checkpoint further, with a smaller schedule.

    The best weights go to the output file; the log and the resumable state into OUTPUT-run/.

        ela-probe finetune pruned.pt -o tuned.pt --epochs 5
    """
    from ela_probe.checkpoint import read_checkpoint
    from ela_probe.pipeline import data_of, finetune
    from ela_probe.system.processes import Processes, shutdown
    from ela_probe.training.config import TrainConfig

    processes = Processes.from_options(devices, num_nodes, strategy, device=device)
    spec = model_spec(model, factory, model_args, code)
    images = checkpoint_data(checkpoint, spec, data, data_root, download)
    images = images or data_of(checkpoint, read_checkpoint(checkpoint, spec=spec))
    config = TrainConfig.for_finetuning(
        images.spec.task,
        **given(
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            warmup_epochs=warmup,
            weight_decay=weight_decay,
            channels_last=channels_last,
        ),
        label_smoothing=label_smoothing,
        precision=precision,
        seed=seed,
        num_workers=workers,
    )
    path = output or checkpoint.with_name(f"{checkpoint.stem}-tuned{checkpoint.suffix}")
    result = finetune(
        checkpoint, config, output=path, data=images, spec=spec, device=device,
        processes=processes, resume=resume,
    )  # fmt: skip
    if shutdown():
        report(result, path, json, task=images.spec.task)

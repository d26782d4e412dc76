"""`ela-probe finetune`."""

from pathlib import Path
from typing import Annotated

import typer

from ela_probe.system.outputs import check_resumable

from .inputs import path_of_data
from .options import (
    ChannelsLast,
    CheckpointArgument,
    DataOptions,
    Json,
    LoggerNames,
    ModelOptions,
    ProcessOptions,
    Seed,
    StrategyName,
    Workers,
)
from .outputs import RUN_FILES, beside, check_output, check_output_folder, writing, writing_folder
from .train import Precision, describe, given


def command(
    *,
    checkpoint: CheckpointArgument,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Checkpoint. Default: CHECKPOINT-tuned, beside it."),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Passes over the training samples. Default: 10, for text 1."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Samples per step. Default: 128, for text 32.")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Highest learning rate. Default: 0.01, for text 0.0005.")
    ] = None,
    warmup: Annotated[
        float | None,
        typer.Option(min=0, help="Epochs of linear warm-up. Default: 0, for text 0.1."),
    ] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option(help="Default: 5e-4 on all parameters (SGD), for text 0.1."),
    ] = None,
    label_smoothing: Annotated[float, typer.Option(help="From 0 to less than 1.")] = 0,
    precision: Annotated[Precision, typer.Option(help="16-mixed needs a GPU.")] = "32-true",
    channels_last: ChannelsLast = None,
    data: DataOptions,
    model: ModelOptions,
    workers: Workers = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue after an interruption.")
    ] = False,
    seed: Seed = 0,
    logger: LoggerNames = "csv",
    hardware: ProcessOptions,
    strategy: StrategyName = "ddp",
    json: Json = False,
) -> None:
    """Train a (pruned) checkpoint further, with a shorter schedule.

    The best weights go to the output file; the log and the state for --resume into OUTPUT-run/.

        ela-probe finetune pruned.pt -o tuned.pt --epochs 5
        ela-probe finetune hf:DIR-pruned --data text:FILE --context 512
    """
    path = output or beside(checkpoint, "tuned")
    run = path.parent / f"{path.stem}-run"
    given_files = [checkpoint, path_of_data(data.data)]
    if resume:
        check_resumable(run / "resume.ckpt")
    check_output(path, given_files, made_from=checkpoint)
    check_output_folder(run, RUN_FILES, given_files)

    from ela_probe.pipeline.train import finetune
    from ela_probe.system.processes import shutdown
    from ela_probe.training.config import TrainConfig
    from ela_probe.training.loggers import parse_loggers

    loggers = parse_loggers(logger)
    processes = hardware.processes(strategy)
    loaded = model.read(checkpoint)
    samples = data.open(loaded)
    task = samples.spec.task
    config = TrainConfig.for_finetuning(
        task,
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
    with writing(path), writing_folder(run, () if resume else RUN_FILES):
        result = finetune(
            loaded,
            config,
            output=path,
            data=samples,
            device=hardware.device,
            processes=processes,
            resume=resume,
            loggers=loggers,
        )
    if shutdown():
        describe(result, path, json, task=task)

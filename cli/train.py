"""`ela-probe train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ela_probe.system.outputs import check_resumable

from . import console, inputs
from .options import (
    ChannelsLast,
    DataRoot,
    Download,
    ImageSize,
    Json,
    Limit,
    LoggerNames,
    ModelArgs,
    ProcessOptions,
    StrategyName,
    Workers,
    parse_model_args,
    parse_numbers,
)
from .outputs import RUN_FILES, as_argument, check_output_folder, writing_folder

if TYPE_CHECKING:
    from ela_probe.training.trainer import FitResult

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
ELA_HELP = (
    "Skip redundant retrievals while training, as in skip=0.5,warmup=10 or loss=0.02. skip: final "
    "share of skipped retrievals (0.3). loss: instead of a ramp, remove after every epoch what is "
    "predicted to raise the loss by so many nats at most. time: the share of the step's time to "
    "reach, such as 0.7, by costs (a file of `ela-probe costs`; without one they are measured when "
    "the warm-up ends). regrow: true lets a removed one come back (with loss or time). "
    "warmup: epochs before the first skip (a tenth of all), or a part of the first epoch, such as "
    "0.25. ramp: epochs in which the share grows (a fifth). freeze: epoch "
    "after which the plan stays (the end of the ramp; with loss or time four fifths). planner: "
    "score (EBQM, the default), budget (least divergence) or damage (least predicted loss change; "
    "the default with loss or time). action: skip, drop, recur, or affine (a scale and a shift "
    "stand in; the default with loss or time). max_run: skip at most this many in a row. "
    "min_keep: keep at least this many per stage. "
    "decay: weight of past epochs in the averages (0.7). hysteresis: how much better a new site "
    "must be to replace a proposed one (0.1). concentration: of the target of the scores (4). "
    "every: probe one of this many batches (100, in short epochs fewer). stochastic: true skips at "
    "random, by score, until the freeze. seed: of the stochastic skips."
)


def command(
    *,
    model: Annotated[
        str | None,
        typer.Option(help="Model name; see `ela-probe models`.", show_default=False),
    ] = None,
    task: Annotated[
        Literal["classify", "language", "detect"] | None,
        typer.Option(help="What to train for. Default: as --data says.", show_default=False),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="digits, npz:PREFIX, folder:DIR, imagenet:DIR, fashion-mnist, cifar10, cifar100, "
            "text:FILE or coco:IMAGES,ANNOTATIONS.json,... (more pairs: validation, test).",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="A YAML file or a built-in recipe (`ela-probe recipes`); other options win.",
            callback=inputs.check_recipe,
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder. Default: runs/MODEL-DATA.")
    ] = None,
    model_args: ModelArgs = None,
    backbone: Annotated[
        Path | None,
        typer.Option(
            help="A classification checkpoint, pruned or not: a detector starts from its weights.",
            callback=inputs.CHECKPOINT.check,
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1, help="Passes over the training samples. Default: 160, text 5, coco 12."
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Samples per step. Default: 128, text 32, coco 16.")
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="Highest learning rate. Default: 0.1, text 0.002, coco 0.02."),
    ] = None,
    optimizer: Annotated[
        Literal["sgd", "adamw"] | None, typer.Option(help="Default: sgd, for text adamw.")
    ] = None,
    momentum: Annotated[float | None, typer.Option(help="Momentum of SGD. Default: 0.9.")] = None,
    nesterov: Annotated[
        bool | None, typer.Option(help="Use Nesterov momentum.", show_default=False)
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Default: 5e-4 on all parameters (SGD), for text 0.1.")
    ] = None,
    gradient_clip: Annotated[
        float | None, typer.Option(help="Largest norm of the gradient. Default: none, for text 1.")
    ] = None,
    schedule: Annotated[
        Literal["cosine", "step"] | None,
        typer.Option(help="cosine (default): to 0. step: times --gamma at every milestone."),
    ] = None,
    milestones: Annotated[
        str | None,
        typer.Option(
            help="Epochs of the step schedule, e.g. 150,225. Default: 1/2 and 3/4 of the epochs."
        ),
    ] = None,
    gamma: Annotated[
        float | None, typer.Option(help="Factor of the step schedule. Default: 0.1.")
    ] = None,
    warmup: Annotated[
        float | None,
        typer.Option(min=0, help="Epochs of linear warm-up. Default: 0, for text 0.1."),
    ] = None,
    label_smoothing: Annotated[
        float | None, typer.Option(help="From 0 (default) to less than 1.")
    ] = None,
    precision: Annotated[
        Precision | None, typer.Option(help="Default: 32-true; 16-mixed needs a GPU.")
    ] = None,
    channels_last: ChannelsLast = None,
    deterministic: Annotated[
        bool | None,
        typer.Option("--deterministic", help="Use only deterministic kernels.", show_default=False),
    ] = None,
    val_fraction: Annotated[
        float | None,
        typer.Option(help="Share of the samples kept for validation. Default: 0.1, for text 0.05."),
    ] = None,
    image_size: ImageSize = None,
    context: Annotated[
        int | None, typer.Option(min=1, help="Tokens per sequence of text. Default: 128.")
    ] = None,
    skip_invalid: Annotated[
        bool,
        typer.Option(
            "--skip-invalid", help="Leave broken entries of coco annotations out, and count them."
        ),
    ] = False,
    data_root: DataRoot = None,
    download: Download = False,
    limit: Limit = None,
    workers: Workers = None,
    ela: Annotated[
        str | None,
        typer.Option(
            metavar="NAME=VALUE,...",
            help=ELA_HELP,
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the folder's resume.ckpt.")
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Seed of all random numbers. Default: 0."),
    ] = None,
    logger: LoggerNames = "csv",
    hardware: ProcessOptions,
    strategy: StrategyName = "ddp",
    json: Json = False,
) -> None:
    """Train a model from scratch.

    Writes best.pt (highest validation accuracy; for text lowest loss, for detectors highest AP),
    last.pt, metrics.csv and
    resume.ckpt into the output folder; with --ela also plan.json. Ctrl-C keeps the last epoch;
    --resume continues from there.

        ela-probe train --model mrla_b_resnet20 --data digits --epochs 10
        ela-probe train --model mrla_b_resnet56 --data npz:DIR/cifar10 --precision bf16-mixed
        ela-probe train --model mrla_b_resnet56 --data npz:DIR/cifar10 --ela skip=0.5,warmup=10
        ela-probe train --model attnres6 --data text:FILE
        ela-probe train --model fasterrcnn_mrla_b_resnet20_fpn --data coco:IMAGES,FILE.json
        ela-probe train --recipe cifar10-quick-cpu --data npz:DIR/cifar10
        ela-probe train --recipe imagenet-mrla --data imagenet:DIR --devices 8
        torchrun --nnodes 2 --nproc-per-node 8 ... $(which ela-probe) train --recipe imagenet-mrla
    """
    inputs.check_data(data, root=data_root, download=download)

    from ela_probe.data.source_names import task_of
    from ela_probe.pipeline.inputs import check_task
    from ela_probe.pipeline.train import train
    from ela_probe.system.processes import shutdown
    from ela_probe.training.loggers import parse_loggers
    from ela_probe.training.recipes import Recipe, read_recipe

    loggers = parse_loggers(logger)
    processes = hardware.processes(strategy)
    plan = Recipe() if recipe is None else read_recipe(recipe)
    spec = plan.model_spec(model, parse_model_args(model_args))
    source = plan.source(data)
    of_source = task_of(source)
    check_name_of_task(task, of_source, source)
    config = plan.config(
        of_source,
        **given(
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            optimizer=optimizer,
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
            gradient_clip=gradient_clip,
            schedule=schedule,
            milestones=None if milestones is None else parse_numbers(milestones, "--milestones"),
            gamma=gamma,
            warmup_epochs=warmup,
            label_smoothing=label_smoothing,
            precision=precision,
            channels_last=channels_last,
            deterministic=deterministic,
            num_workers=workers,
            seed=seed,
        ),
    )
    refuse_unused(config.schedule == "step", "--schedule step", {"--gamma": gamma})
    refuse_unused(
        config.optimizer == "sgd",
        "--optimizer sgd",
        {"--momentum": momentum, "--nesterov": nesterov},
    )
    refuse_unused(of_source == "tokens", "--data text:FILE", {"--context": context})
    refuse_unused(of_source != "tokens", "a --data of images", {"--image-size": image_size})
    refuse_unused(
        of_source == "detection",
        "--data coco:IMAGES,ANNOTATIONS.json",
        {"--backbone": backbone, "--skip-invalid": skip_invalid or None},
    )
    check_task(spec, source)
    folder = output or Path("runs") / f"{Path(spec.name).name}-{source.partition(':')[0]}".lower()
    if resume:
        check_resumable(folder / "resume.ckpt")
    check_output_folder(
        folder, RUN_FILES, [inputs.path_of(recipe), inputs.path_of_data(source), backbone]
    )
    spec.build()  # reports a wrong name before any data is read
    samples = plan.open_data(
        source,
        root=data_root,
        download=download,
        seed=config.seed,
        **given(
            limit=limit,
            val_fraction=val_fraction,
            image_size=image_size,
            context=context,
            skip_invalid=skip_invalid or None,
        ),
    )
    with writing_folder(folder, () if resume else RUN_FILES):
        result = train(
            spec,
            samples,
            config,
            output=folder,
            ela=plan.ela_config(ela),
            backbone=backbone,
            device=hardware.device,
            processes=processes,
            resume=resume,
            loggers=loggers,
        )
    if shutdown():
        describe(result, result.best, json, task=samples.spec.task)


TASK_NAMES = {
    "images": "classify",
    "tokens": "language",
    "detection": "detect",
    "audio": "classify",
}


def check_name_of_task(name: str | None, task: str, source: str) -> None:
    """Raise OptionError where --task is not that of the data."""
    from ela_probe.errors import OptionError

    own = TASK_NAMES[task]
    if name is not None and name != own:
        raise OptionError(
            f"got --task {name}, but {source} is data to {own}; leave --task out, or choose other "
            "data with --data"
        )


def refuse_unused(used: bool, by: str, options: dict[str, Any]) -> None:
    """Raise OptionError where an option was given that only another option, `by`, uses."""
    from ela_probe.errors import OptionError

    names = [name for name, value in options.items() if value is not None]
    if names and not used:
        raise OptionError(f"got {' and '.join(names)} without {by}, which uses it; give both")


def given(**options: Any) -> dict[str, Any]:
    """The options that the user gave; the task has defaults for the others."""
    return {name: value for name, value in options.items() if value is not None}


def describe(result: "FitResult", best: Path, as_json: bool, *, task: str) -> None:
    """Print how a training run ended, and where its best weights are."""
    from ela_probe.evaluation.objectives import perplexity
    from ela_probe.system.numbers import counted

    loss = result.best_metrics.get("val_loss")
    best_perplexity = perplexity(loss) if task == "tokens" and loss is not None else None
    if as_json:
        document = {
            "checkpoint": best,
            "last": result.last,
            "log": result.log,
            "epochs": result.epochs,
            "seconds": result.seconds,
            "best": result.best_metrics,
            "final": result.last_metrics,
        }
        console.print_json(document | given(val_perplexity=best_perplexity, ela=result.ela))
        return
    if result.ela is not None:
        time, wanted = result.ela["time"], result.ela["requested_time"]
        saved = "" if time is None else f", predicted step time {time:.0%} of the unpruned"
        if time is not None and wanted is not None and time > wanted:
            saved += f" ({wanted:.0%} was requested)"
        console.print_line(
            "ELA skips {skipped} of {retrievals} retrievals ({share:.0%}){saved}; probing and "
            "planning took {ebqm_seconds:.2f} s, {ebqm_share:.2%} of the training: {plan}".format(
                **result.ela, saved=saved
            )
        )
    accuracy = result.best_metrics.get("val_accuracy")
    quality = "" if accuracy is None else f"validation accuracy {accuracy:.2%}, "
    precision = result.best_metrics.get("val_ap")
    if precision is not None:
        quality += f"validation AP {precision:.2%}, "
    if best_perplexity is not None:
        quality += f"perplexity {best_perplexity:.3f}, "
    console.print_line(f"{quality}{counted(result.epochs, 'epoch')} in {result.seconds:.0f} s")
    console.print_line(f"best weights: {best}")
    console.print_line(f"next: ela-probe analyze {as_argument(best)}")

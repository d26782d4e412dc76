"""`ela-probe train`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from . import console
from .options import (
    ChannelsLast,
    DataRoot,
    Device,
    Devices,
    Download,
    ImageSize,
    Json,
    Limit,
    ModelArgs,
    NumNodes,
    StrategyName,
    Workers,
    model_arguments,
    numbers,
)

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
ELA_HELP = (
    "Skip redundant retrievals in training, as in skip=0.5,warmup=10. skip: share of all in the "
    "end (0.3). warmup: epochs before the first skip (a tenth of them). ramp: epochs in which the "
    "share grows (a fifth). freeze: epoch after which the plan stays (the ramp's last). planner: "
    "score (EBQM; default) or budget (least divergence). action: skip, drop or recur. max_run, "
    "min_keep: at most so many skipped in a row, at least so many kept in a stage. decay: weight "
    "of past epochs in the averages (0.7). hysteresis: by which fraction a site must be better "
    "than a proposed one (0.1). concentration: of the target of the scores (4). every: probe a "
    "batch of so many (100, in short epochs fewer). stochastic: true skips at random, by score, "
    "until the freeze. seed: of that."
)


def command(
    model: Annotated[
        str | None,
        typer.Option(help="Model name; see `ela-probe models`.", show_default=False),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="digits, npz:PREFIX, folder:DIR, imagenet:DIR, fashion-mnist, cifar10, cifar100 "
            "or text:FILE.",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="A YAML file, or a built-in recipe (`ela-probe recipes`); other options win.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder. Default: runs/MODEL-DATA.")
    ] = None,
    model_args: ModelArgs = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Passes over the training samples; default: 160, of text 5."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Samples a step; default: 128, of text 32.")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Highest learning rate; default: 0.1, of text 0.002.")
    ] = None,
    optimizer: Annotated[
        Literal["sgd", "adamw"] | None, typer.Option(help="Default: sgd, of text adamw.")
    ] = None,
    momentum: Annotated[float | None, typer.Option(help="Of SGD; default: 0.9.")] = None,
    nesterov: Annotated[
        bool | None, typer.Option(help="Nesterov's momentum.", show_default=False)
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="SGD: on all parameters, default 5e-4; of text 0.1.")
    ] = None,
    gradient_clip: Annotated[
        float | None, typer.Option(help="Largest norm of the gradient; default: none, of text 1.")
    ] = None,
    schedule: Annotated[
        Literal["cosine", "step"] | None,
        typer.Option(help="cosine (default) to 0, or step: times --gamma at every milestone."),
    ] = None,
    milestones: Annotated[
        str | None,
        typer.Option(help="Of the step schedule, e.g. 150,225; default: 1/2, 3/4 of the epochs."),
    ] = None,
    gamma: Annotated[float | None, typer.Option(help="Of the step schedule; default: 0.1.")] = None,
    warmup: Annotated[
        float | None, typer.Option(min=0, help="Epochs of linear warm-up; default: 0, of text 0.1.")
    ] = None,
    label_smoothing: Annotated[
        float | None, typer.Option(help="0 (default) to less than 1.")
    ] = None,
    precision: Annotated[
        Precision | None, typer.Option(help="Default: 32-true; 16-mixed needs a GPU.")
    ] = None,
    channels_last: ChannelsLast = None,
    deterministic: Annotated[
        bool | None,
        typer.Option("--deterministic", help="Only deterministic kernels.", show_default=False),
    ] = None,
    val_fraction: Annotated[
        float | None,
        typer.Option(help="Share kept for validation; default: 0.1, of a text 0.05."),
    ] = None,
    image_size: ImageSize = None,
    context: Annotated[
        int | None, typer.Option(min=1, help="Tokens a sequence, of text; default: 128.")
    ] = None,
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
        bool, typer.Option("--resume", help="Go on from the folder's resume.ckpt.")
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Seed of everything that is drawn at random; default: 0."),
    ] = None,
    device: Device = "auto",
    devices: Devices = None,
    num_nodes: NumNodes = None,
    strategy: StrategyName = "ddp",
    json: Json = False,
) -> None:
    """Train a model from scratch.

    Writes best.pt (highest validation accuracy; of text lowest loss), last.pt, metrics.csv and
    resume.ckpt into the output folder; with --ela also plan.json. Ctrl-C keeps the last epoch;
    --resume goes on from there.

        ela-probe train --model mrla_b_resnet20 --data digits --epochs 10
        ela-probe train --model mrla_b_resnet56 --data npz:DIR/cifar10 --precision bf16-mixed
        ela-probe train --model mrla_b_resnet56 --data npz:DIR/cifar10 --ela skip=0.5,warmup=10
        ela-probe train --model attnres6 --data text:FILE
        ela-probe train --recipe cifar10-quick-cpu --data npz:DIR/cifar10
        ela-probe train --recipe imagenet-mrla --data imagenet:DIR --devices 8
        torchrun --nnodes 2 --nproc-per-node 8 ... $(which ela-probe) train --recipe ...
    """
    from ela_probe.pipeline import train
    from ela_probe.system.processes import Processes, shutdown
    from ela_probe.training.recipes import Recipe, read_recipe

    processes = Processes.from_options(devices, num_nodes, strategy, device=device)
    plan = Recipe() if recipe is None else read_recipe(recipe)
    spec = plan.model_spec(model, model_arguments(model_args))
    source = plan.source(data)
    config = plan.config(
        "tokens" if source.startswith("text:") else "images",
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
            milestones=None if milestones is None else numbers(milestones, "--milestones"),
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
    spec.build()  # a wrong name is said before any data is read
    samples = plan.open_data(
        source,
        root=data_root,
        download=download,
        seed=config.seed,
        **given(limit=limit, val_fraction=val_fraction, image_size=image_size, context=context),
    )
    folder = output or Path("runs") / f"{Path(spec.name).name}-{source.partition(':')[0]}".lower()
    result = train(
        spec, samples, config, output=folder, ela=plan.ela_config(ela), device=device,
        processes=processes, resume=resume,
    )  # fmt: skip
    if shutdown():
        report(result, result.best, json, task=samples.spec.task)


def given(**options: Any) -> dict[str, Any]:
    """The options that were given; the task has defaults for the others."""
    return {name: value for name, value in options.items() if value is not None}


def report(result: Any, best: Path, as_json: bool, *, task: str = "images") -> None:
    """Say how a training run ended, and where its best weights lie."""
    from ela_probe.evaluation.evaluate import perplexity

    loss = result.best_metrics.get("val_loss")
    language = task == "tokens" and loss is not None
    document = {
        "checkpoint": best,
        "last": result.last,
        "log": result.log,
        "epochs": result.epochs,
        "seconds": result.seconds,
        "best": result.best_metrics,
        "final": result.last_metrics,
    }
    if language:
        document["val_perplexity"] = perplexity(loss)
    if result.ela is not None:
        document["ela"] = result.ela
    console.emit(document, as_json=as_json)
    if not as_json:
        accuracy = result.best_metrics.get("val_accuracy")
        how = "" if accuracy is None else f"validation accuracy {accuracy:.2%}, "
        if language:
            how += f"perplexity {perplexity(loss):.3f}, "
        if result.ela is not None:
            console.out.print(
                "ELA skips {skipped} of {retrievals} retrievals ({share:.0%}); probing and planning"
                " took {ebqm_seconds:.2f} s, {ebqm_share:.2%} of the training: {plan}".format(
                    **result.ela
                ),
                soft_wrap=True,
            )
        console.out.print(
            f"{how}{result.epochs} epochs in {result.seconds:.0f} s\n"
            f"best weights: {best}\nnext: ela-probe analyze {best}",
            soft_wrap=True,
        )

"""`ela-probe train`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from . import console
from .options import DataRoot, Device, Download, Json, Limit, ModelArgs, Seed, Workers, model_spec

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
    model: Annotated[str, typer.Option(help="Model name; see `ela-probe models`.")],
    data: Annotated[
        str,
        typer.Option(
            help="digits, npz:PREFIX, folder:DIR, fashion-mnist, cifar10, cifar100 or text:FILE."
        ),
    ],
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
    momentum: Annotated[float, typer.Option(help="Momentum of SGD.")] = 0.9,
    weight_decay: Annotated[
        float | None, typer.Option(help="SGD: on all parameters, default 5e-4; of text 0.1.")
    ] = None,
    gradient_clip: Annotated[
        float | None, typer.Option(help="Largest norm of the gradient; default: none, of text 1.")
    ] = None,
    schedule: Annotated[
        Literal["cosine", "step"],
        typer.Option(help="cosine to 0, or a tenth at 1/2 and at 3/4 of the epochs."),
    ] = "cosine",
    warmup: Annotated[
        float | None, typer.Option(min=0, help="Epochs of linear warm-up; default: 0, of text 0.1.")
    ] = None,
    label_smoothing: Annotated[float, typer.Option(help="0 to less than 1.")] = 0,
    precision: Annotated[Precision, typer.Option(help="16-mixed needs a GPU.")] = "32-true",
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Only deterministic kernels.")
    ] = False,
    val_fraction: Annotated[
        float | None,
        typer.Option(help="Share kept for validation; default: 0.1, of a text 0.05."),
    ] = None,
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
    seed: Seed = 0,
    device: Device = "auto",
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
    """
    from ela_probe.data import open_data
    from ela_probe.pipeline import train
    from ela_probe.training import ELAConfig, TrainConfig

    settings = None if ela is None else ELAConfig.parse(ela)
    config = TrainConfig.for_task(
        "tokens" if data.startswith("text:") else "images",
        **given(
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            optimizer=optimizer,
            weight_decay=weight_decay,
            gradient_clip=gradient_clip,
            warmup_epochs=warmup,
        ),
        momentum=momentum,
        schedule=schedule,
        label_smoothing=label_smoothing,
        precision=precision,
        seed=seed,
        num_workers=workers,
        deterministic=deterministic,
    )
    spec = model_spec(None if ":" in model else model, model if ":" in model else None, model_args)
    assert spec is not None
    spec.build()  # a wrong name is said before any data is read
    images = open_data(
        data,
        root=data_root,
        download=download,
        limit=limit,
        val_fraction=val_fraction,
        seed=seed,
        context=context,
    )
    folder = output or Path("runs") / f"{Path(model).name}-{data.partition(':')[0]}".lower()
    result = train(spec, images, config, output=folder, ela=settings, device=device, resume=resume)
    report(result, result.best, json, task=images.spec.task)


def given(**options: Any) -> dict[str, Any]:
    """The options that were given; the task has defaults for the others."""
    return {name: value for name, value in options.items() if value is not None}


def report(result: Any, best: Path, as_json: bool, *, task: str = "images") -> None:
    """Say how a training run ended, and where its best weights lie."""
    from ela_probe.evaluation import perplexity

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

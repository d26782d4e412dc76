"""Options that several commands share, with one wording."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from ela_probe.data.example_inputs import ExampleInputs, InputType, RandomInputs
    from ela_probe.data.opening import Data as OpenedData
    from ela_probe.models.registry import ModelSpec

SplitName = Literal["train", "val", "test"]

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout; all else on stderr.")
]
Device = Annotated[
    str, typer.Option(help="auto (the first there is of cuda, mps, cpu), cpu, cuda, cuda:1, mps.")
]
Devices = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Processes on this machine, one a GPU or CPU share. Default: as torchrun or SLURM "
        "started, else 1.",
        show_default=False,
    ),
]
NumNodes = Annotated[
    int | None,
    typer.Option(min=1, help="Machines; they need torchrun or srun.", show_default=False),
]
StrategyName = Annotated[
    Literal["ddp", "fsdp"],
    typer.Option(
        "--strategy",
        help="Of several processes: ddp, each with the whole model and a part of every "
        "batch, or fsdp, which shares out parameters and optimizer too.",
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything that is drawn at random.")]
Data = Annotated[
    str | None,
    typer.Option(
        help="digits, npz:PREFIX, folder:DIR, imagenet:DIR, fashion-mnist, cifar10, cifar100 or "
        "text:FILE. Default: the data that the checkpoint names.",
        show_default=False,
    ),
]
DataRoot = Annotated[
    Path | None, typer.Option(help="Folder of the torchvision data sets.", show_default=False)
]
Download = Annotated[
    bool, typer.Option("--download", help="Fetch a torchvision data set that is not there.")
]
Limit = Annotated[
    int | None, typer.Option(min=1, help="Use at most so many samples.", show_default=False)
]
Every = Annotated[
    int, typer.Option(min=1, help="Record the first of every N batches; the others run unhooked.")
]
MaxBatches = Annotated[
    int | None,
    typer.Option(min=1, help="Stop after so many recorded batches.", show_default=False),
]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Record at most so many token positions of a sequence, evenly spaced.",
        show_default=False,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(min=0, help="Processes that read samples; default: as the data needs."),
]
ChannelsLast = Annotated[
    bool | None,
    typer.Option(
        help="Order of images in memory; default: channels last on a CPU, for our ResNets.",
        show_default=False,
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Samples a batch.")]
Model = Annotated[
    str | None,
    typer.Option(help="Model of a bare state dict; see `ela-probe models`.", show_default=False),
]
Factory = Annotated[
    str | None,
    typer.Option(
        help="package.module:function that builds the model. Its code is run.",
        show_default=False,
    ),
]
ModelArgs = Annotated[
    str | None,
    typer.Option(
        "--model-args",
        "--factory-args",
        help="Arguments of the model as JSON, e.g. '{\"head_dim\": 8}'.",
        show_default=False,
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(min=1, help="Resize images to so many pixels a side.", show_default=False),
]
InputSize = Annotated[
    str | None,
    typer.Option(
        help="Run on seeded random inputs of this size instead of data, e.g. 3,224,224, or 128 "
        "for token ids.",
        show_default=False,
    ),
]
InputDtype = Annotated[
    Literal["float32", "float64", "float16", "bfloat16", "int64", "int32"],
    typer.Option(help="Of random inputs; token ids are int64."),
]
InputHigh = Annotated[
    int | None,
    typer.Option(help="Random integers are below this: the vocabulary.", show_default=False),
]
ExampleBatches = Annotated[
    str | None,
    typer.Option(
        "--example-inputs",
        help="package.module:function that gives batches (tensors, tuples, dicts) to run on "
        "instead of data. Its code is run.",
        show_default=False,
    ),
]
SitesFile = Annotated[
    Path | None,
    typer.Option(
        "--sites",
        help="TOML file that says where to read (docs/adapters.md), instead of finding out.",
        show_default=False,
    ),
]
CodePath = Annotated[
    Path | None,
    typer.Option(
        "--path",
        help="Folder of the code that --factory or --example-inputs names, put first on sys.path.",
        show_default=False,
    ),
]
CheckpointArgument = Annotated[
    Path,
    typer.Argument(help="A checkpoint, or a state dict with --model.", show_default=False),
]


def model_spec(
    model: str | None, factory: str | None, arguments: str | None, path: Path | None = None
) -> "ModelSpec | None":
    """The model that was named, if any. Raises OptionError."""
    from ela_probe.errors import OptionError
    from ela_probe.models.registry import ModelSpec

    if model and factory:
        raise OptionError("both --model and --factory were given; expected one of them")
    if factory and ":" not in factory:
        raise OptionError(f"--factory {factory!r} came; expected package.module:function")
    parsed = model_arguments(arguments)
    name = model or factory
    if name is None:
        if parsed:
            raise OptionError("--model-args came without --model or --factory; name the model")
        return None
    return ModelSpec(name=name, args=parsed, path=path)


def model_arguments(arguments: str | None) -> dict[str, Any]:
    """What --model-args says. Raises OptionError."""
    from ela_probe.errors import OptionError

    try:
        parsed = json.loads(arguments) if arguments else {}
    except json.JSONDecodeError as error:
        raise OptionError(
            f"--model-args is no JSON ({error.msg}); expected e.g. '{{\"head_dim\": 8}}'"
        ) from error
    if not isinstance(parsed, dict):
        raise OptionError(f"--model-args is a JSON {type(parsed).__name__}; expected an object")
    return parsed


def numbers(text: str, option: str) -> tuple[float, ...]:
    """Numbers with commas between them. Raises OptionError."""
    from ela_probe.errors import OptionError

    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise OptionError(
            f"{option} {text!r} came; expected numbers with commas, e.g. 150,225"
        ) from error


def checkpoint_data(
    checkpoint: Path,
    spec: "ModelSpec | None",
    data: str | None,
    data_root: Path | None,
    download: bool,
    *,
    image_size: int | None = None,
) -> "OpenedData | None":
    """The data named by --data and --data-root; None leaves it to the checkpoint.

    With a checkpoint that carries a data spec its normalisation, classes and split are kept.
    """
    from ela_probe.checkpoint import read_checkpoint
    from ela_probe.data.opening import data_from_spec, open_data
    from ela_probe.errors import OptionError

    if data is None and data_root is None and not download and image_size is None:
        return None
    known = read_checkpoint(checkpoint, spec=spec).header.data
    if known is not None:
        known = known.with_source(data or known.source, root=data_root)
        if image_size is not None:
            if not hasattr(known, "image_size"):
                raise OptionError(f"--image-size came, but {known.source} holds no images")
            known = known.model_copy(update={"image_size": image_size})
        return data_from_spec(known, download=download)
    if data is None:
        if image_size is not None:
            raise OptionError("--image-size came without --data; name the images")
        return None
    return open_data(data, root=data_root, download=download, image_size=image_size)


def chosen_inputs(
    size: str | None,
    dtype: "InputType",
    high: int | None,
    examples: str | None,
    *,
    path: Path | None,
    data: str | None,
    limit: int | None,
    batch_size: int,
    seed: int,
) -> "RandomInputs | ExampleInputs | None":
    """What to run on instead of data, if anything. Raises OptionError, ModelError."""
    from ela_probe.data.example_inputs import ExampleInputs, RandomInputs
    from ela_probe.errors import OptionError

    named = [
        option
        for option, value in (
            ("--data", data), ("--input-size", size), ("--example-inputs", examples)
        )
        if value is not None
    ]  # fmt: skip
    if len(named) > 1:
        raise OptionError(f"{' and '.join(named)} were given; expected one of them")
    if examples is not None:
        return ExampleInputs(examples, path=path, limit=limit)
    if size is None:
        if high is not None:
            raise OptionError("--input-high came without --input-size; give both")
        return None
    try:
        numbers = tuple(int(part) for part in size.split(","))
    except ValueError as error:
        raise OptionError(
            f"--input-size {size!r} came; expected numbers with commas, e.g. 3,32,32"
        ) from error
    return RandomInputs(
        numbers, dtype, high, samples=limit or 256, batch_size=batch_size, seed=seed
    )

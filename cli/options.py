"""Options that several commands share: single ones, and groups that do something together."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from . import console, inputs

if TYPE_CHECKING:
    from ela_probe.checkpoint import Checkpoint
    from ela_probe.data.example_inputs import ExampleInputs, RandomInputs
    from ela_probe.data.opening import Data
    from ela_probe.models.registry import ModelSpec
    from ela_probe.spreading import Spread
    from ela_probe.system.processes import Processes

SplitName = Literal["train", "val", "test"]

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout, all else on stderr.")
]
Device = Annotated[
    str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto: the first of cuda, mps, cpu it finds.")
]
StrategyName = Annotated[
    Literal["ddp", "fsdp"],
    typer.Option(
        "--strategy",
        help="With several processes. ddp: each holds the whole model. fsdp: parameters and "
        "optimizer are sharded too. Either way each takes a part of every batch.",
    ),
]
LoggerNames = Annotated[
    str,
    typer.Option(
        metavar="NAME,...",
        help="Where the numbers of each epoch go: csv (metrics.csv, always written), tensorboard, "
        "wandb, mlflow. With --ela also divergences, damage and figures.",
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of all random numbers.")]
DataRoot = Annotated[
    Path | None, typer.Option(help="Folder of the torchvision data sets.", show_default=False)
]
Download = Annotated[
    bool, typer.Option("--download", help="Download a torchvision data set that is missing.")
]
Limit = Annotated[
    int | None, typer.Option(min=1, help="Use at most this many samples.", show_default=False)
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=0, help="Processes that read samples. Default: chosen for the data.", show_default=False
    ),
]
ChannelsLast = Annotated[
    bool | None,
    typer.Option(
        help="Memory format of images. Default: channels last for our ResNets on a CPU.",
        show_default=False,
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Samples per batch. Default: 256 (compare and costs: 128), for detectors 16.",
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
    typer.Option(
        min=1,
        help="Resize images to this height and width; for detectors the shorter side.",
        show_default=False,
    ),
]
SitesFile = Annotated[
    Path | None,
    typer.Option(
        "--sites",
        help="TOML file that says where the weights are (docs/adapters.md), instead of discovery.",
        callback=inputs.SITES.check,
        show_default=False,
    ),
]
CheckpointArgument = Annotated[
    Path,
    typer.Argument(
        help="A checkpoint, a state dict with --model, or hf:DIR, a directory that save_pretrained "
        "of transformers wrote.",
        callback=inputs.CHECKPOINT.check,
        show_default=False,
    ),
]


@dataclass(frozen=True)
class ModelOptions:
    """Which model a state dict belongs to. Checkpoints that we wrote say it themselves."""

    model: Annotated[
        str | None,
        typer.Option(
            help="Model of a bare state dict; see `ela-probe models`.", show_default=False
        ),
    ] = None
    factory: Annotated[
        str | None,
        typer.Option(
            help="package.module:function that builds the model. Its code is run.",
            show_default=False,
        ),
    ] = None
    model_args: ModelArgs = None
    path: Annotated[
        Path | None,
        typer.Option(
            "--path",
            help="Folder of the code of --factory or --example-inputs, put first on sys.path.",
            callback=inputs.CODE_FOLDER.check,
            show_default=False,
        ),
    ] = None

    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(
            help="Type of the weights of hf:DIR; bfloat16 takes half the memory of float32. "
            "Default: as they are stored.",
            show_default=False,
        ),
    ] = None
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code",
            help="Run the Python code that lies in hf:DIR. A directory with code of its own is "
            "refused otherwise.",
        ),
    ] = False

    def spec(self) -> "ModelSpec | None":
        """The model that the options name, if any. Raises OptionError."""
        from ela_probe.errors import OptionError
        from ela_probe.models.registry import ModelSpec

        if self.model and self.factory:
            raise OptionError("got both --model and --factory, expected one of them")
        if self.factory and ":" not in self.factory:
            raise OptionError(f"got --factory {self.factory!r}, expected package.module:function")
        arguments = parse_model_args(self.model_args)
        name = self.model or self.factory
        if name is None:
            if arguments:
                raise OptionError("got --model-args without --model or --factory; name the model")
            return None
        return ModelSpec(name=name, args=arguments, path=self.path)

    def read(self, checkpoint: Path, *, spread: "Spread | None" = None) -> "Checkpoint":
        """Read the checkpoint, and print a note on how a foreign file was read.

        Raises OptionError, CheckpointError, ModelError.
        """
        import torch

        from ela_probe.checkpoint import read_checkpoint
        from ela_probe.errors import OptionError

        spec, is_directory = self.spec(), checkpoint.is_dir()
        if is_directory and spec is not None:
            raise OptionError(
                f"got a model's name for {checkpoint}, a directory that names its model itself; "
                "leave it out"
            )
        for option, given in (
            ("--dtype", self.dtype is not None),
            ("--trust-remote-code", self.trust_remote_code),
            ("--device-map", spread is not None),
        ):
            if given and not is_directory:
                raise OptionError(f"got {option}, but {checkpoint} is no hf:DIR; leave it out")
        loaded = read_checkpoint(
            checkpoint,
            spec=spec,
            dtype=None if self.dtype is None else getattr(torch, self.dtype),
            trust_remote_code=self.trust_remote_code,
            spread=spread,
        )
        if loaded.note is not None and console.is_first_process():
            console.print_note(f"note: {checkpoint.name}: {loaded.note}")
        return loaded


@dataclass(frozen=True)
class DataOptions:
    """Which data to use instead of those that the checkpoint names."""

    data: Annotated[
        str | None,
        typer.Option(
            help="digits, npz:PREFIX, folder:DIR, imagenet:DIR, fashion-mnist, cifar10, cifar100, "
            "text:FILE, coco:IMAGES,ANNOTATIONS.json or, for audio classifiers, audio:PREFIX. "
            "Default: what the checkpoint names.",
            show_default=False,
        ),
    ] = None
    data_root: DataRoot = None
    download: Download = False
    context: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens per sequence of text. Default: as in training, else 128.",
            show_default=False,
        ),
    ] = None

    def __post_init__(self) -> None:
        inputs.check_data(self.data, root=self.data_root, download=self.download)

    @property
    def are_given(self) -> bool:
        """Whether an option says more than what the checkpoint does."""
        return (
            self.data is not None
            or self.data_root is not None
            or self.download
            or self.context is not None
        )

    def open(self, checkpoint: "Checkpoint", *, image_size: int | None = None) -> "Data":
        """Open the data for this checkpoint. Raises CheckpointError, DataError, OptionError."""
        from ela_probe.pipeline.inputs import data_for

        return data_for(
            checkpoint,
            self.data,
            root=self.data_root,
            download=self.download,
            image_size=image_size,
            context=self.context,
        )


@dataclass(frozen=True)
class InputOptions:
    """Inputs to run the model on instead of data."""

    input_size: Annotated[
        str | None,
        typer.Option(
            help="Use seeded random inputs of this size instead of data, e.g. 3,224,224, or 128 "
            "for token ids.",
            show_default=False,
        ),
    ] = None
    input_dtype: Annotated[
        Literal["float32", "float64", "float16", "bfloat16", "int64", "int32"],
        typer.Option(help="Type of the random inputs; token ids are int64."),
    ] = "float32"
    input_high: Annotated[
        int | None,
        typer.Option(
            help="Random integers are below this, e.g. the vocabulary size.", show_default=False
        ),
    ] = None
    example_inputs: Annotated[
        str | None,
        typer.Option(
            help="package.module:function that returns batches (tensors, tuples, dicts) to use "
            "instead of data. Its code is run.",
            show_default=False,
        ),
    ] = None
    batch_keys: Annotated[
        str | None,
        typer.Option(
            metavar="INPUTS:LABELS",
            help="Fields of those batches: what the model is called with, and the labels, e.g. "
            "image:label or input_ids,attention_mask:labels. Without it the model gets all fields.",
            show_default=False,
        ),
    ] = None

    def build(
        self,
        *,
        path: Path | None,
        data: DataOptions,
        image_size: int | None = None,
        limit: int | None,
        batch_size: int,
        seed: int,
    ) -> "RandomInputs | ExampleInputs | None":
        """The inputs that the options name, if any. Raises OptionError, ModelError.

        Args:
            path: folder of the code of --example-inputs.
            data, image_size: options of data, which exclude the others.
            limit: at most this many samples.
            batch_size, seed: of random inputs.
        """
        from ela_probe.data.example_inputs import ExampleInputs, RandomInputs, parse_batch_keys
        from ela_probe.errors import OptionError

        of_data = {
            "--data": data.data,
            "--data-root": data.data_root,
            "--download": data.download or None,
            "--context": data.context,
            "--image-size": image_size,
        }
        instead = {"--input-size": self.input_size, "--example-inputs": self.example_inputs}
        data_given, given = (
            [option for option, value in values.items() if value is not None]
            for values in (of_data, instead)
        )
        if len(given) > 1 or (given and data_given):
            raise OptionError(f"got {' and '.join(data_given + given)}, expected one of them")
        if self.example_inputs is not None:
            inputs, labels = parse_batch_keys(self.batch_keys) if self.batch_keys else (None, None)
            return ExampleInputs(
                self.example_inputs, path=path, limit=limit, inputs=inputs, labels=labels
            )
        if self.batch_keys is not None:
            raise OptionError("got --batch-keys without --example-inputs; give both")
        if self.input_size is None:
            for option, is_given in (
                ("--input-high", self.input_high is not None),
                ("--input-dtype", self.input_dtype != "float32"),
            ):
                if is_given:
                    raise OptionError(f"got {option} without --input-size; give both")
            return None
        try:
            size = tuple(int(part) for part in self.input_size.split(","))
        except ValueError as error:
            raise OptionError(
                f"got --input-size {self.input_size!r}, expected numbers with commas, e.g. 3,32,32"
            ) from error
        return RandomInputs(
            size,
            self.input_dtype,
            self.input_high,
            samples=limit or 256,
            batch_size=batch_size,
            seed=seed,
        )


@dataclass(frozen=True)
class SamplingOptions:
    """How much of a large model to record."""

    every: Annotated[
        int,
        typer.Option(min=1, help="Record the first of every N batches; the others run unhooked."),
    ] = 1
    max_batches: Annotated[
        int | None,
        typer.Option(min=1, help="Stop after this many recorded batches.", show_default=False),
    ] = None
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Record at most this many token positions of a sequence, evenly spaced.",
            show_default=False,
        ),
    ] = None


@dataclass(frozen=True)
class ProcessOptions:
    """Where to compute, and in how many processes."""

    device: Device = "auto"
    devices: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes on this machine, one per GPU, or sharing the CPU. Default: as many as "
            "torchrun or SLURM started, else 1.",
            show_default=False,
        ),
    ] = None
    num_nodes: Annotated[
        int | None,
        typer.Option(min=1, help="Machines; they need torchrun or srun.", show_default=False),
    ] = None

    def processes(self, strategy: Literal["ddp", "fsdp"] = "ddp") -> "Processes":
        """Raises OptionError where the options contradict each other or this machine."""
        from ela_probe.system.processes import Processes

        return Processes.from_options(self.devices, self.num_nodes, strategy, device=self.device)


def parse_model_args(text: str | None) -> dict[str, Any]:
    """The value of --model-args. Raises OptionError."""
    from ela_probe.errors import OptionError
    from ela_probe.system.reading import refuse_surrogates, refusing

    with refusing(OptionError, "--model-args is no JSON", "expected e.g. '{\"head_dim\": 8}'"):
        parsed = json.loads(text) if text else {}
        refuse_surrogates(parsed)
    if not isinstance(parsed, dict):
        raise OptionError(f"--model-args is a JSON {type(parsed).__name__}, expected an object")
    return parsed


def parse_numbers(text: str, option: str) -> tuple[float, ...]:
    """Numbers with commas between them. Raises OptionError."""
    from ela_probe.errors import OptionError

    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise OptionError(
            f"got {option} {text!r}, expected numbers with commas, e.g. 150,225"
        ) from error

"""Training steps of the networks of `methods`, timed in turn on one batch."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.published.networks import KCLA, MRLA
from benchmarks.support.contestants import (
    PUBLISHED_B,
    Network,
    largest_difference,
    randomise_norms,
)
from benchmarks.support.method import MRLA_B, backbone_of
from benchmarks.support.runs import Run
from ela_probe.checkpoint import read_checkpoint
from ela_probe.errors import OptionError
from ela_probe.evaluation.profiling import (
    Step,
    alternate,
    cuda_devices,
    first_tensor,
    training_step,
)
from ela_probe.models.published import from_published
from ela_probe.system.memory_format import to_memory_format
from ela_probe.training.config import TrainConfig
from ela_probe.training.run_folder import LAST

TOLERANCE = 1e-4
MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def time_in_turn(
    runs: Sequence[Run], *, rounds: int, device: torch.device, published: nn.Module | None = None
) -> dict[str, list[float]]:
    """Seconds of a training step of each method's trained network, round by round, and of the plain
    network and MRLA-B, all on one batch of the first run's data; `published` is PUBLISHED_B."""
    first = runs[0]
    data = first.open_data()
    batch = next(iter(data.loader("train", batch_size=first.config.batch_size)))
    images, labels = (part.to(device) for part in batch)
    models = {str(run.method): read_checkpoint(run.folder / LAST).model for run in reversed(runs)}
    backbone = backbone_of(first.spec.name)
    for name in (backbone, f"{MRLA_B}{backbone}"):
        if name not in models:
            spec = first.recipe.model_spec(name, data.spec.model_arguments())
            models[name] = spec.build()
    if published is not None:
        models[PUBLISHED_B] = published
    with torch.random.fork_rng(devices=cuda_devices(device)):
        steps = {
            name: step_in_training(model.to(device), images, labels, first.config)
            for name, model in sorted(models.items())
        }
        return alternate(steps, rounds=rounds, warmup=2, device=device, description="timing steps")


def step_in_training(model: nn.Module, images: Tensor, labels: Tensor, config: TrainConfig) -> Step:
    """A training step as in a run with these settings: the same precision and memory format."""
    images = to_memory_format(images, model, channels_last=config.channels_last)
    dtype = MIXED.get(config.precision)
    return training_step(model if dtype is None else Mixed(model, dtype), images, labels)


class Mixed(nn.Module):
    """A network whose forward pass runs under autocast; its logits are float32."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, dtype=self.dtype):
            logits: Tensor = self.model(images)
        return logits.float()


def published_base(run: Run, checkouts: Sequence[Path]) -> nn.Module:
    """The published MRLA-B on the run's backbone, after a check that it computes what ours does.

    Raises:
        OptionError: no checkout has it, or it is not the network of the recipe.
    """
    data = run.open_data()
    backbone = backbone_of(run.spec.name)
    kind, depth = re.split(r"(?<=\D)(?=\d)", backbone)
    shape = first_tensor(data.spec.example()[0]).shape[1:]
    network = Network(kind, int(depth), 2, shape[-1], data.spec.num_classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = network.published(checkouts, "base")
        if theirs is None:
            raise OptionError(
                f"no --reference holds the published {MRLA_B}{backbone}; expected a checkout, in a "
                f"folder of its name, of {KCLA if kind == 'resnet' else MRLA}"
            )
        randomise_norms(theirs)
        images = torch.randn(2, *shape)
        sizes = data.spec.model_arguments()
        ours = run.recipe.model_spec(f"{MRLA_B}{backbone}", sizes).build()
    try:
        ours.load_state_dict(from_published(theirs.state_dict()))
        logits = [{"logits": model.eval()(images).detach()} for model in (ours, theirs)]
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:150]
        raise OptionError(
            f"the published {MRLA_B}{backbone} is not the network of this recipe and data "
            f"({reason}): leave out --reference"
        ) from error
    differ = largest_difference(*logits)
    if not differ <= TOLERANCE:
        raise OptionError(
            f"the published {MRLA_B}{backbone} is not what the recipe's computes: its logits "
            f"differ by {differ:.1e} of their largest, expected {TOLERANCE:g} or less; leave out "
            "--reference"
        )
    return theirs

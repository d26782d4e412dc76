"""A detector whose ResNet has the weights, and the pruning, of a classification checkpoint."""

import inspect
from pathlib import Path

from torch import nn

from ela_probe.checkpoint import CLASSES, read_checkpoint
from ela_probe.data.spec import DataSpec
from ela_probe.errors import CheckpointError, OptionError
from ela_probe.models.builders import rcnn_options
from ela_probe.models.registry import ModelSpec
from ela_probe.models.zoo import DETECTOR
from ela_probe.pruning.plan import SkipPlan
from ela_probe.pruning.prune import prune
from ela_probe.system.checkpoint_file import read_file

# What is usual over trained weights: the stem and the first stage are frozen, and so are the
# statistics of all batch norms.
OVER_TRAINED = {"frozen_stages": 2, "frozen_norm": True}


def detector_over(
    spec: ModelSpec, backbone: Path
) -> tuple[nn.Module, ModelSpec, tuple[SkipPlan, ...]]:
    """Build a detector over the ResNet of a checkpoint.

    The arguments of the ResNet are those of the checkpoint, and images are normalised as in its
    data. `frozen_stages` is 2 and `frozen_norm` true where `spec` does not say otherwise.

    Args:
        spec: of the detector. backbone: a checkpoint of ours, pruned or not, or a state dict of a
            published ResNet.

    Returns: the detector, how it was built, and the plans by which its ResNet was pruned.

    Raises:
        OptionError: the model is no detector.
        CheckpointError: the checkpoint is of another ResNet, or can't be read.
        ModelError: arguments that don't fit.
    """
    parts = DETECTOR.fullmatch(spec.name)
    if parts is None:
        raise OptionError(
            f"got a backbone for {spec.name}, which is no detector; expected a model such as "
            "fasterrcnn_resnet20_fpn"
        )
    of_resnet = {k: v for k, v in spec.args.items() if k not in rcnn_arguments()}
    bare = read_file(backbone).header is None
    named = ModelSpec(name=parts["resnet"], args=of_resnet) if bare else None
    checkpoint = read_checkpoint(backbone, spec=named)
    header = checkpoint.header
    if header.model.name != parts["resnet"]:
        raise CheckpointError(
            f"{backbone} holds a {header.model.name}, but {spec.name} needs a {parts['resnet']}; "
            f"give that one, or train {spec.name.replace(parts['resnet'], header.model.name)}"
        )
    arguments = {k: v for k, v in header.model.args.items() if k != CLASSES}
    arguments |= OVER_TRAINED
    if isinstance(header.data, DataSpec):
        arguments |= {"image_mean": header.data.mean, "image_std": header.data.std}
    spec = spec.model_copy(update={"args": {**arguments, **spec.args}})
    model = spec.build()
    for plan in header.plans:
        model = prune(model, plan)
    body = model.get_submodule("backbone.body")
    trained, wanted = checkpoint.model.state_dict(), body.state_dict()
    differing = [n for n in wanted if n not in trained or trained[n].shape != wanted[n].shape]
    if differing:
        raise CheckpointError(
            f"{backbone} does not fit the ResNet of {spec.name}: {differing[0]} differs (and "
            f"{len(differing) - 1} more tensors); check the arguments of the model"
        )
    body.load_state_dict({name: trained[name] for name in wanted})
    return model, spec, header.plans


def rcnn_arguments() -> set[str]:
    """The names of a detector's own arguments; all others are its ResNet's."""
    return set(inspect.signature(rcnn_options).parameters)

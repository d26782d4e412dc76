"""The data or inputs that a verb runs a checkpoint on, and checks that the model takes them."""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import Dataset

from ela_probe.analysis.result import Provenance
from ela_probe.checkpoint import Checkpoint
from ela_probe.data.audio import AudioSpec
from ela_probe.data.detection import DetectionSpec
from ela_probe.data.example_inputs import ExampleInputs, RandomInputs
from ela_probe.data.opening import Data, data_from_spec, open_data
from ela_probe.data.source_names import Task, task_of
from ela_probe.errors import CheckpointError, DataError, OptionError
from ela_probe.forward import call, eval_mode, first_samples, inputs_and_labels, logits_of, moved
from ela_probe.models.detection import Detector, MaskRCNN
from ela_probe.models.registry import ModelSpec, family_of
from ela_probe.system.messages import first_line

Split = Literal["train", "val", "test"]
DETECTION_BATCH = 16  # images of 800 x 1333 pixels
TASKS: dict[Task, str] = {
    "images": "images to classify",
    "tokens": "text",
    "detection": "images with objects",
    "audio": "sounds",
}


def data_for(
    checkpoint: Checkpoint,
    source: str | None = None,
    *,
    root: Path | None = None,
    download: bool = False,
    image_size: int | None = None,
    context: int | None = None,
) -> Data:
    """Open the data that a checkpoint was trained on, or other data for its model.

    Where the checkpoint names its data, other data get the same normalisation, classes and split.

    Args:
        source: data to open instead (`digits`, `npz:PREFIX`, ...).
        root: folder of the torchvision data sets.
        download: fetch a torchvision data set that is missing.
        image_size: resize images to this height and width, in pixels.
        context: tokens in a window of text.

    Raises:
        CheckpointError: there is no source, and the checkpoint names none.
        OptionError: an image size for data without images, or a context for data without text.
        DataError: the data are missing or damaged.
    """
    spec = checkpoint.header.data
    directory = checkpoint.path if checkpoint.is_directory else None
    if spec is None:
        if source is None:
            raise CheckpointError(
                f"{checkpoint.path} does not say what data it belongs to; name it with --data "
                "(digits, npz:PREFIX, folder:DIR, imagenet:DIR, fashion-mnist, cifar10, cifar100, "
                "text:FILE, audio:PREFIX or coco:IMAGES,ANNOTATIONS.json), or analyze it on "
                "--example-inputs package.module:function or on random inputs, --input-size C,H,W"
            )
        return open_data(
            source,
            root=root,
            download=download,
            image_size=image_size,
            context=context,
            directory=directory,
        )
    if source is not None or root is not None:
        spec = spec.with_source(source or spec.source, root=root)
    if image_size is not None:
        if spec.task == "detection":
            raise OptionError(
                f"got --image-size {image_size}, but a detector keeps the size that it was trained "
                "with; leave it out"
            )
        if spec.task != "images":
            raise OptionError(f"got --image-size {image_size}, but {spec.source} has no images")
        spec = spec.model_copy(update={"image_size": image_size})
    if context is not None:
        if spec.task != "tokens":
            raise OptionError(f"got --context {context}, but {spec.source} has no text")
        spec = spec.model_copy(update={"context": context})
    return data_from_spec(spec, download=download, directory=directory)


def batch_size_for(data: Data | None, given: int | None, usual: int) -> int:
    """The samples in a batch: those that are given, else the usual number, of a detector fewer."""
    if given is not None:
        return given
    detects = data is not None and data.spec.task == "detection"
    return min(usual, DETECTION_BATCH) if detects else usual


def analysed_samples(checkpoint: Checkpoint, provenance: Provenance) -> Dataset[Any]:
    """The samples that an analysis was made of, in its order, read again from the data.

    Raises:
        OptionError: the analysis is of another checkpoint, or of inputs that are no data set.
        CheckpointError, DataError: as `data_for`.
    """
    if provenance.checkpoint_sha256 not in (None, checkpoint.sha256):
        raise OptionError(
            f"{checkpoint.path} is not the checkpoint that was analysed ({provenance.checkpoint}, "
            f"SHA-256 {str(provenance.checkpoint_sha256)[:12]}...); give that one"
        )
    splits: tuple[Split, ...] = ("train", "val", "test")
    split = next((name for name in splits if name == provenance.split), None)
    if split is None:
        raise OptionError(
            f"the analysis is of {provenance.data or 'unknown data'}, not of a split of a data "
            "set, so that its samples can't be read again; leave --checkpoint out"
        )
    own = checkpoint.header.data
    source = None if own is not None and own.source == provenance.data else provenance.data
    return data_for(checkpoint, source).dataset(split, limit=provenance.limit)


def check_task(spec: ModelSpec, source: str) -> None:
    """Raise DataError where the source is for another task than the model of ours is."""
    family, task = family_of(spec.name), task_of(source)
    if family is not None and family.reads != task:
        raise DataError(
            f"{spec.name} is for {TASKS[family.reads]}, but {source} holds {TASKS[task]}; choose "
            "other data with --data, or another model (see `ela-probe models`)"
        )


def check_data(model: nn.Module, data: Data) -> None:
    """Run the model on one blank sample of the data's shape.

    Raises:
        DataError: the model does not take such a sample, or has another number of classes.
    """
    inputs, labels = data.spec.example()
    weights = next((p.dtype for p in model.parameters()), torch.float32)
    if isinstance(data.spec, AudioSpec) and weights != torch.float32:
        raise DataError(
            f"the model's weights are {str(weights).removeprefix('torch.')}, but the sounds of "
            f"{data.spec.source} are float32; pass --dtype float32"
        )
    output = _output_of(
        model,
        inputs,
        f"{data.spec.sample} as in {data.spec.source}",
        "choose other data with --data, or a model made for them",
    )
    if isinstance(data.spec, DetectionSpec):
        _check_detector(model, data.spec)
        return
    logits = logits_of(output)
    if logits is None:
        return
    classes = logits.shape[-1]
    # A tokenizer may know fewer tokens than a model has room for.
    if getattr(data.spec, "tokens", None) == "tokenizer":
        classes = min(classes, data.spec.num_classes)
    assert isinstance(labels, torch.Tensor)
    if logits.shape[:-1] != labels.shape or classes != data.spec.num_classes:
        raise DataError(
            f"{data.spec.source} has {data.spec.num_classes} classes, but the model's output for "
            f"a sample has shape {list(logits.shape[1:])}; choose other data with --data"
        )


def _check_detector(model: nn.Module, spec: DetectionSpec) -> None:
    """Raise DataError where a model is no detector of ours, or not one for these objects."""
    if not isinstance(model, Detector):
        raise DataError(
            f"{spec.source} has objects with boxes, but the model is a {type(model).__name__}; "
            "expected a detector such as fasterrcnn_resnet20_fpn"
        )
    classes = model.roi_heads.box_predictor.cls_score.out_features
    if classes != spec.num_classes:
        raise DataError(
            f"{spec.source} has {len(spec.classes)} categories, but the model {classes - 1}; "
            "choose other data with --data"
        )
    if isinstance(model, MaskRCNN) and not spec.masks:
        raise DataError(
            f"{spec.source} has objects without a mask (segmentation), which Mask R-CNN needs; "
            "choose a fasterrcnn model, or other data"
        )


def check_inputs(model: nn.Module, inputs: RandomInputs | ExampleInputs) -> None:
    """Run the model on the first sample. Raises DataError where it does not take it."""
    first = next(iter(inputs), None)
    if first is None:
        raise DataError(f"nothing to analyse: got no batch from {inputs}, expected at least one")
    _output_of(
        model,
        first_samples(inputs_and_labels(first, labelled=inputs.labelled)[0], 1),
        str(inputs),
        "expected what its forward takes: see --input-size, --input-dtype, --example-inputs",
    )


@torch.no_grad()
def _output_of(model: nn.Module, inputs: Any, name: str, advice: str) -> Any:
    """The model's output for the inputs, in eval mode.

    Raises:
        DataError: the model does not take them; the message holds `name` and `advice`.
    """
    try:
        with eval_mode(model):
            return call(model, moved(inputs, model))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise DataError(
            f"the model does not take {name} ({first_line(error)}); {advice}"
        ) from error

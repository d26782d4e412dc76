"""The functions that build the models of the table in `zoo`. They check their arguments."""

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, validate_call
from torch import nn

from ela_probe.models.attention_mechanisms import MECHANISMS, Count
from ela_probe.models.attnres import Transformer
from ela_probe.models.detection import Detector, build_detector, shrink_stem
from ela_probe.models.resnet import Layout, ResNet, cifar, imagenet

Channels = Annotated[tuple[float, ...], Field(min_length=1)]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LARGEST_RATIO = 1333 / 800  # of the longer side of an image to the shorter one, as is usual


def cifar_resnet(mechanism: str, depth: int, **arguments: Any) -> ResNet:
    """A CIFAR ResNet; the arguments are those of its layout, ends and attention mechanism.

    Raises:
        ModelError, pydantic.ValidationError: arguments that do not fit.
    """
    return build_resnet(cifar_layout, mechanism, 10, {"depth": depth, **arguments})


def imagenet_resnet(
    mechanism: str, published: Mapping[str, Any], depth: int, **arguments: Any
) -> ResNet:
    """The same for ImageNet. published: arguments that hold where none are given."""
    return build_resnet(
        imagenet_layout, mechanism, 1000, {"depth": depth, **published, **arguments}
    )


@validate_call
def cifar_layout(depth: int, *, block: Literal["basic", "bottleneck"] = "basic") -> Layout:
    """The layout of a CIFAR ResNet, its arguments checked."""
    return cifar(depth, block)


@validate_call
def imagenet_layout(depth: int, *, stem: Literal["plain", "deep"] = "plain") -> Layout:
    """The layout of an ImageNet ResNet, its arguments checked."""
    return imagenet(depth, stem)


@validate_call
def ends(num_classes: Count, *, in_channels: Count = 3) -> dict[str, int]:
    """The arguments of the first and the last layer of a ResNet, checked."""
    return {"num_classes": num_classes, "in_channels": in_channels}


def build_resnet(
    layout_of: Callable[..., Layout],
    mechanism: str,
    num_classes: int,
    arguments: dict[str, Any],
) -> ResNet:
    """Arguments that neither the layout nor the ends of a ResNet take go to its attention."""
    arguments = {"num_classes": num_classes, **arguments}
    of_ends = {k: arguments.pop(k) for k in ("num_classes", "in_channels") if k in arguments}
    names = inspect.signature(layout_of).parameters
    of_layout = {k: arguments.pop(k) for k in names if k in arguments}
    attention = MECHANISMS[mechanism](**arguments)
    return ResNet(layout_of(**of_layout), attention, **ends(**of_ends))


def rcnn(masks: bool, resnet: Callable[..., ResNet], **arguments: Any) -> Detector:
    """A detector over a ResNet of the zoo; `rcnn_options` lists its own arguments.

    Args:
        masks: Mask R-CNN, else Faster R-CNN.
        resnet: builds the ResNet, and takes all other arguments.

    Raises:
        ModelError, pydantic.ValidationError: arguments that do not fit.
    """
    own = inspect.signature(rcnn_options).parameters
    of_detector = {name: arguments.pop(name) for name in own if name in arguments}
    body = resnet(**arguments)
    small = isinstance(body.shrink, nn.Identity)
    if small:
        shrink_stem(body)
    sizes = {"channels": 64, "head_size": 256} if small else {}
    return build_detector(body, masks=masks, **rcnn_options(**{**sizes, **of_detector}))


@validate_call
def rcnn_options(
    *,
    num_classes: Annotated[int, Field(ge=2)] = 91,
    channels: Count = 256,
    head_size: Count = 1024,
    anchor_size: Count = 32,
    min_size: Count = 800,
    max_size: Count | None = None,
    image_mean: Channels = IMAGENET_MEAN,
    image_std: Channels = IMAGENET_STD,
    frozen_stages: Annotated[int, Field(ge=0)] = 0,
    frozen_norm: bool = False,
    box_detections_per_img: Count = 100,
    box_score_thresh: Annotated[float, Field(ge=0, lt=1)] = 0.05,
) -> dict[str, Any]:
    """The arguments of a detector, checked; those that are no sizes are torchvision's."""
    return {**locals(), "max_size": max_size or round(LARGEST_RATIO * min_size)}


@validate_call
def gpt(
    depth: Count,
    *,
    dim: Count = 128,
    heads: Count = 4,
    kv_heads: Count = 2,
    vocab_size: Count = 256,
    tied: bool = False,
) -> Any:
    """The plain pre-norm transformer."""
    return Transformer(
        depth,
        attention=None,
        dim=dim,
        heads=heads,
        kv_heads=kv_heads,
        vocab_size=vocab_size,
        tied=tied,
    )


@validate_call
def attnres(
    depth: Count,
    *,
    block_size: Count = 1,
    dim: Count = 128,
    heads: Count = 4,
    kv_heads: Count = 2,
    vocab_size: Count = 256,
    tied: bool = False,
) -> Any:
    """A transformer with Attention Residuals, full (`block_size` 1) or in blocks."""
    return Transformer(
        depth,
        block_size=block_size,
        dim=dim,
        heads=heads,
        kv_heads=kv_heads,
        vocab_size=vocab_size,
        tied=tied,
    )


@validate_call
def attnres_block(depth: Count, *, block_size: Count = 4, **arguments: Any) -> Any:
    """Attention Residuals in blocks of four sublayers."""
    return attnres(depth, block_size=block_size, **arguments)

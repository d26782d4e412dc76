"""The table of the models that come with the package. Reading it imports no torch."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

from ela_probe.models.family import ModelFamily

if TYPE_CHECKING:
    from torch import nn


def build(builder: str, *fixed: Any, **arguments: Any) -> nn.Module:
    """Call a function of `builders`, which is imported now."""
    from ela_probe.models import builders

    return getattr(builders, builder)(*fixed, **arguments)


def cifar(mechanism: str, description: str, parameters: tuple[int, ...]) -> ModelFamily:
    """CIFAR ResNets with an attention mechanism, whose arguments the family takes too."""
    return ModelFamily(
        resnet_name(mechanism, "resnet"),
        partial(build, "cifar_resnet", mechanism),
        f"CIFAR, {description}",
        (20, 32, 44, 56, 110),
        parameters=parameters,
    )


def imagenet(
    mechanism: str, description: str, parameters: tuple[int, ...], **published: Any
) -> ModelFamily:
    """ImageNet ResNets with an attention mechanism.

    published: defaults that differ from those for CIFAR, as in the published networks.
    """
    return ModelFamily(
        resnet_name(mechanism, "imagenet_resnet"),
        partial(build, "imagenet_resnet", mechanism, published),
        f"ImageNet, {description}",
        (50, 101, 152),
        parameters=parameters,
    )


def resnet_name(mechanism: str, backbone: str) -> str:
    """The name of a family, such as `mrla_b_resnet`."""
    return backbone if mechanism == "plain" else f"{mechanism}_{backbone}"


def text(name: str, description: str, parameters: tuple[int, ...]) -> ModelFamily:
    """Language models."""
    return ModelFamily(
        name, partial(build, name), f"text, {description}", (6, 12), "tokens", parameters
    )


# A detector's name holds that of its ResNet: fasterrcnn_mrla_b_resnet20_fpn.
DETECTOR = re.compile("(?P<kind>fasterrcnn|maskrcnn)_(?P<resnet>.+)_fpn")


def detectors(kind: str, resnets: ModelFamily) -> ModelFamily | None:
    """The detectors over a family of ResNets; None where these are no ResNets.

    Their `build` takes a function that builds the ResNet.
    """
    if resnets.reads != "images":
        return None
    return ModelFamily(
        f"{kind}_{resnets.name}_fpn",
        partial(build, "rcnn", kind == "maskrcnn"),
        f"detection, {resnets.description}",
        reads="detection",
    )


# The descriptions say what the attention is over. tests/test_models.py checks the counts.
ZOO: tuple[ModelFamily, ...] = (
    cifar("plain", "plain", (272_474, 466_906, 661_338, 855_770, 1_730_714)),
    cifar("se", "SE (channel)", (274_490, 470_266, 666_042, 861_818, 1_742_810)),
    cifar("eca", "ECA (channel)", (272_501, 466_951, 661_401, 855_851, 1_730_876)),
    cifar("cbam", "CBAM (space)", (275_747, 472_361, 668_975, 865_589, 1_750_352)),
    cifar("dia", "DIA (layer)", (286_866, 481_298, 675_730, 870_162, 1_745_106)),
    cifar("rla_g", "RLA_g (layer)", (314_354, 533_122, 751_890, 970_658, 1_955_114)),
    cifar("dla_b", "DLA-B (layer)", (287_704, 484_636, 681_568, 878_500, 1_764_694)),
    cifar("dla_l", "DLA-L (layer)", (289_048, 486_204, 683_360, 880_516, 1_767_718)),
    cifar("mrla_b", "MRLA-B (layer)", (276_224, 473_156, 670_088, 867_020, 1_753_214)),
    cifar("mrla_l", "MRLA-L (layer)", (276_560, 473_716, 670_872, 868_028, 1_755_230)),
    imagenet("plain", "plain", (25_557_032, 44_549_160, 60_192_808)),
    imagenet("se", "SE (channel)", (28_071_976, 49_292_328, 66_770_984)),
    imagenet("eca", "ECA (channel)", (25_557_118, 44_549_331, 60_193_064)),
    imagenet("cbam", "CBAM (space)", (28_089_624, 49_330_172, 66_826_848)),
    imagenet("dia", "DIA (layer)", (28_358_052, 47_350_180, 62_993_828), reduction=20),
    imagenet("rla_g", "RLA_g (layer)", (25_870_696, 45_003_176, 60_770_792), hidden=32),
    imagenet(
        "dla_b",
        "DLA-B (layer)",
        (28_532_148, 47_715_934, 63_528_712),
        head_dim=32,
        reduction=16,
    ),
    imagenet(
        "dla_l",
        "DLA-L (layer)",
        (28_581_812, 47_783_006, 63_611_144),
        head_dim=32,
        reduction=16,
    ),
    imagenet("mrla_b", "MRLA-B (layer)", (25_742_580, 44_926_366, 60_739_144), stem="deep"),
    imagenet("mrla_l", "MRLA-L (layer)", (25_738_452, 44_939_646, 60_767_784), head_dim=32),
    text("gpt", "plain", (1_173_120, 2_280_576)),
    text("attnres", "AttnRes", (1_174_784, 2_283_776)),
    text("attnres_block", "block AttnRes", (1_174_784, 2_283_776)),
)

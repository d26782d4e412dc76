"""Published networks that our zoo has too, for the command `parity`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.published.networks import (
    BASE,
    CBAM,
    DIA,
    DLA,
    ECA,
    KCLA,
    LIGHT,
    MRLA,
    RLA,
    PublishedNetwork,
    cifar,
    imagenet,
)


@dataclass(frozen=True)
class Counterpart:
    """A published network and the same one of ours.

    Attributes:
        ours: as `tests.golden.network` takes it: a name and arguments, or a layout.
        samples: how many at once; None where any number does.
        recorded: whether the tests have its logits.
    """

    network: PublishedNetwork
    ours: Mapping[str, Any]
    samples: int | None = None
    recorded: bool = False


SHORT = [2, 1, 1, 1]  # blocks by stage of an ImageNet network that a test can afford
PLANES = [64, 128, 256, 512]
ECA_KERNELS = [5, 5, 5, 7]  # of ECA's convolutions in ImageNet ResNets, as its formula gives them


def cifar_pair(
    repository: str,
    file: str,
    ours: str,
    block: str,
    *,
    samples: int | None = None,
    recorded: bool = False,
    **arguments: Any,
) -> Counterpart:
    """A CIFAR ResNet of theirs; its depth is that in our name."""
    return Counterpart(
        cifar(repository, file, int(ours.rpartition("resnet")[2]), block),
        {"model": ours, "arguments": {"block": block, **arguments}},
        samples,
        recorded,
    )


def dla_pair(
    repository: str, file: str, depth: int, head_dim: int, *, recorded: bool = False
) -> Counterpart:
    """One sample at a time: their refreshes read the cell's state of the batch's first sample."""
    ours = f"{file}_resnet{depth}"
    return cifar_pair(
        repository, file, ours, "bottleneck", samples=1, recorded=recorded, head_dim=head_dim
    )


def imagenet_pair(ours: str, network: PublishedNetwork, samples: int | None = None) -> Counterpart:
    return Counterpart(network, {"model": ours, "arguments": {"num_classes": 10}}, samples)


def short_pair(
    repository: str,
    file: str,
    network: str,
    block: str,
    attention: str,
    *,
    stem: str = "plain",
    **options: Any,
) -> Counterpart:
    """An ImageNet network of five blocks, which no published function makes."""
    layout = {"stem": stem, "blocks": SHORT, "planes": PLANES, "block": "bottleneck"}
    return Counterpart(
        PublishedNetwork(
            repository,
            file,
            f"{network} {SHORT}",
            lambda code: getattr(code, network)(getattr(code, block), SHORT, num_classes=10),
            64,
        ),
        {"layout": layout, "attention": attention, "arguments": options},
        recorded=True,
    )


# CBAM's CIFAR network has a 3 x 3 stem and basic blocks.
CBAM_CIFAR = PublishedNetwork(
    CBAM,
    "model_resnet",
    f"CIFAR10 {SHORT} CBAM",
    lambda code: code.ResNet(code.BasicBlock, SHORT, "CIFAR10", 10, "CBAM"),
)
CBAM_CIFAR_LAYOUT = {"stem": "small", "blocks": SHORT, "planes": PLANES, "block": "basic"}
CBAM_50 = PublishedNetwork(
    CBAM,
    "model_resnet",
    "ImageNet 50 CBAM",
    lambda code: code.ResidualNet("ImageNet", 50, 10, "CBAM"),
    224,
)
RLA_50 = PublishedNetwork(
    RLA,
    "resnet_rla",
    "RLA_ResNet 50",
    lambda code: code.RLA_ResNet(code.RLA_Bottleneck, [3, 4, 6, 3], num_classes=10),
    64,
)

COUNTERPARTS = [
    cifar_pair(KCLA, "mrla_base", "mrla_b_resnet20", "basic", recorded=True),
    cifar_pair(KCLA, "mrla_base", "mrla_b_resnet29", "bottleneck", recorded=True),
    cifar_pair(KCLA, "mrla_base", "mrla_b_resnet56", "basic"),
    cifar_pair(KCLA, "mrla_light", "mrla_l_resnet20", "basic", recorded=True),
    cifar_pair(KCLA, "mrla_light", "mrla_l_resnet29", "bottleneck", recorded=True),
    cifar_pair(KCLA, "mrla_light", "mrla_l_resnet56", "basic"),
    cifar_pair(KCLA, "resnet", "resnet20", "basic", recorded=True),
    cifar_pair(KCLA, "resnet", "resnet29", "bottleneck", recorded=True),
    cifar_pair(KCLA, "resnet", "resnet56", "basic"),
    cifar_pair(KCLA, "senet", "se_resnet20", "basic"),
    cifar_pair(KCLA, "ecanet", "eca_resnet20", "basic", recorded=True),
    cifar_pair(KCLA, "ecanet", "eca_resnet29", "bottleneck"),
    cifar_pair(KCLA, "dia_resnet", "dia_resnet29", "bottleneck"),
    dla_pair(KCLA, "dla_b", 29, 16),
    dla_pair(KCLA, "dla_l", 29, 16),
    cifar_pair(DLA, "senet", "se_resnet29", "bottleneck", recorded=True),
    dla_pair(DLA, "dla_b", 29, 32, recorded=True),
    dla_pair(DLA, "dla_b", 56, 32),
    dla_pair(DLA, "dla_l", 29, 32, recorded=True),
    cifar_pair(DIA, "dia_resnet", "dia_resnet29", "bottleneck", recorded=True),
    cifar_pair(DIA, "dia_resnet", "dia_resnet56", "bottleneck"),
    imagenet_pair(
        "dla_l_imagenet_resnet50", imagenet(DLA, "resnet_dla_l", "resnet50_dla_l", size=128), 1
    ),
    imagenet_pair("imagenet_resnet50", imagenet(MRLA, "resnet", "resnet50")),
    imagenet_pair("imagenet_resnet101", imagenet(MRLA, "resnet", "resnet101")),
    imagenet_pair("imagenet_resnet152", imagenet(MRLA, "resnet", "resnet152")),
    imagenet_pair("se_imagenet_resnet50", imagenet(MRLA, "resnet", "resnet50_se")),
    imagenet_pair("eca_imagenet_resnet50", imagenet(MRLA, "resnet", "resnet50_eca")),
    imagenet_pair("mrla_b_imagenet_resnet50", imagenet(MRLA, BASE, "resnet50_mrlab")),
    imagenet_pair("mrla_b_imagenet_resnet101", imagenet(MRLA, BASE, "resnet101_mrlab", size=128)),
    imagenet_pair("mrla_l_imagenet_resnet50", imagenet(MRLA, LIGHT, "resnet50_mrlal")),
    imagenet_pair(
        "eca_imagenet_resnet50", imagenet(ECA, "eca_resnet", "eca_resnet50", k_size=ECA_KERNELS)
    ),
    short_pair(MRLA, BASE, "ResNet_mrlab", "MRLA_Bottleneck", "mrla_b", stem="deep"),
    short_pair(RLA, "resnet_rla", "RLA_ResNet", "RLA_Bottleneck", "rla", hidden=32),
    imagenet_pair("rla_g_imagenet_resnet50", RLA_50),
    Counterpart(
        CBAM_CIFAR,
        {"layout": CBAM_CIFAR_LAYOUT, "attention": "cbam", "arguments": {}},
        recorded=True,
    ),
    imagenet_pair("cbam_imagenet_resnet50", CBAM_50),
]

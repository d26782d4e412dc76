"""Published networks whose sites and weights are known, for the command `foreign`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from benchmarks.published.networks import (
    BASE,
    BLOCKS,
    DIA,
    DLA,
    KCLA,
    LIGHT,
    MRLA,
    PublishedNetwork,
    cifar,
    imagenet,
)
from benchmarks.published.weights_by_hand import (
    channel_weights,
    key_norm_weights,
    softmax_weights,
    token_softmax_weights,
    unrolled_weights,
)

WeightsByHand = Callable[..., list[Tensor]]


@dataclass(frozen=True)
class WithSites:
    """A published network whose sites are known.

    Attributes:
        sites: how many each stage has. by_hand: recomputes their weights.
        ours: the name and arguments of the same network in our zoo, or None.
    """

    network: PublishedNetwork
    sites: tuple[int, ...]
    by_hand: WeightsByHand
    ours: Mapping[str, Any] | None = None


def cifar_sites(
    repository: str,
    file: str,
    by_hand: WeightsByHand,
    depth: int,
    block: str,
    *,
    function: str | None = None,
    ours: str | None = None,
) -> WithSites:
    """A site in every block."""
    label = f"{file} {depth} {BLOCKS[block]}"
    return WithSites(
        cifar(repository, file, depth, block, function=function, label=label),
        ((depth - 2) // (6 if block == "basic" else 9),) * 3,
        by_hand,
        None if ours is None else {"model": ours, "arguments": {"block": block}},
    )


def imagenet_sites(repository: str, file: str, function: str, by_hand: WeightsByHand) -> WithSites:
    """A site in every block of a ResNet-50."""
    return WithSites(imagenet(repository, file, function, label=file), (3, 4, 6, 3), by_hand)


def deit_sites(
    file: str, function: str, by_hand: WeightsByHand, sites: tuple[int, ...]
) -> WithSites:
    """Their smallest DeiT on 4 by 4 patches. They need timm (0.5.4 works)."""
    return WithSites(imagenet(MRLA, file, function, label=file, img_size=64), sites, by_hand)


def dia_sites(file: str, options: Mapping[str, Any]) -> WithSites:
    """Two blocks a stage."""
    network = PublishedNetwork(
        DIA, file, f"{file} {options['depth']}", lambda code: getattr(code, file)(**options)
    )
    return WithSites(network, (2, 2, 2), channel_weights)


mrla_b_weights = partial(softmax_weights, raw=False)
equation_4_weights = partial(softmax_weights, raw=True)
DEIT_DEPTH, DEIT_LIST = 12, 4  # blocks; MRLA-B starts a new list of sources every 4
WIDE = {"depth": 16, "num_classes": 10, "widen_factor": 4}
RESNEXT = {"cardinality": 8, "depth": 20, "num_classes": 10, "widen_factor": 4}

WITH_SITES = [
    cifar_sites(KCLA, "mrla_base", mrla_b_weights, 32, "basic", ours="mrla_b_resnet32"),
    cifar_sites(KCLA, "mrla_base", mrla_b_weights, 47, "bottleneck", ours="mrla_b_resnet47"),
    cifar_sites(KCLA, "mrla_light", unrolled_weights, 32, "basic", ours="mrla_l_resnet32"),
    cifar_sites(KCLA, "mrla_light", unrolled_weights, 47, "bottleneck", ours="mrla_l_resnet47"),
    cifar_sites(KCLA, "layer_attention", equation_4_weights, 32, "basic"),
    cifar_sites(KCLA, "dla_b", mrla_b_weights, 47, "bottleneck"),
    cifar_sites(KCLA, "dla_l", unrolled_weights, 47, "bottleneck"),
    cifar_sites(KCLA, "KCLA", key_norm_weights, 47, "bottleneck", function="kcla"),
    cifar_sites(KCLA, "dia_resnet", channel_weights, 47, "bottleneck"),
    imagenet_sites(KCLA, "kcla_resnet", "resnet50_kcla", key_norm_weights),
    imagenet_sites(MRLA, BASE, "resnet50_mrlab", mrla_b_weights),
    imagenet_sites(MRLA, f"{BASE}22", "resnet50_mrlab", mrla_b_weights),
    imagenet_sites(MRLA, LIGHT, "resnet50_mrlal", unrolled_weights),
    deit_sites(
        "deit_mrla_base",
        "deit_mrlab_tiny_patch16_224",
        token_softmax_weights,
        (DEIT_LIST,) * (DEIT_DEPTH // DEIT_LIST),
    ),
    deit_sites("deit_mrla_light", "deit_mrlal_tiny_patch16_224", unrolled_weights, (DEIT_DEPTH,)),
    cifar_sites(DLA, "mrla_base", mrla_b_weights, 47, "bottleneck"),
    cifar_sites(DLA, "mrla_light", unrolled_weights, 47, "bottleneck"),
    cifar_sites(DLA, "dla_b", mrla_b_weights, 47, "bottleneck"),
    cifar_sites(DLA, "dla_l", unrolled_weights, 47, "bottleneck"),
    imagenet_sites(DLA, "resnet_dla_l", "resnet50_dla_l", unrolled_weights),
    cifar_sites(DIA, "dia_resnet", channel_weights, 47, "bottleneck"),
    cifar_sites(DIA, "dia_preresnet", channel_weights, 47, "bottleneck"),
    dia_sites("dia_wrn", WIDE),
    dia_sites("dia_resnext", RESNEXT),
]

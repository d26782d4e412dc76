"""The models that come with the package: families of ResNets and of small transformers."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import validate_call

from ela_probe.models import plugs
from ela_probe.models.attnres import Transformer
from ela_probe.models.plugs import Attention, Count
from ela_probe.models.registry import ModelFamily, register_family
from ela_probe.models.resnet import Layout, ResNet, cifar, imagenet


def resnet_family(
    prefix: str, description: str, attention: Callable[..., Attention]
) -> ModelFamily:
    """CIFAR ResNets with an attention of `plugs`, whose arguments the family takes too."""

    @validate_call
    def layout_of(depth: int, *, block: Literal["basic", "bottleneck"] = "basic") -> Layout:
        return cifar(depth, block)

    def build(depth: int, **arguments: Any) -> Any:
        return build_resnet(layout_of, attention, 10, {"depth": depth, **arguments})

    return ModelFamily(f"{prefix}resnet", build, description, (20, 32, 44, 56, 110))


def imagenet_family(
    prefix: str,
    description: str,
    attention: Callable[..., Attention],
    published: Mapping[str, Any],
) -> ModelFamily:
    """The same for ImageNet. published: arguments that stand where none are given."""

    @validate_call
    def layout_of(depth: int, *, stem: Literal["plain", "deep"] = "plain") -> Layout:
        return imagenet(depth, stem)

    def build(depth: int, **arguments: Any) -> Any:
        return build_resnet(layout_of, attention, 1000, {"depth": depth, **published, **arguments})

    return ModelFamily(f"{prefix}imagenet_resnet", build, description, (50, 101, 152))


@validate_call
def ends(num_classes: Count, *, in_channels: Count = 3) -> dict[str, int]:
    """The arguments of a ResNet's first and last layer, checked."""
    return {"num_classes": num_classes, "in_channels": in_channels}


def build_resnet(
    layout_of: Callable[..., Layout],
    attention: Callable[..., Attention],
    num_classes: int,
    arguments: dict[str, Any],
) -> ResNet:
    """The arguments that are not of the layout or the ends of a ResNet go to its attention."""
    arguments = {"num_classes": num_classes, **arguments}
    of_ends = {k: arguments.pop(k) for k in ("num_classes", "in_channels") if k in arguments}
    names = inspect.signature(layout_of).parameters
    of_layout = {k: arguments.pop(k) for k in names if k in arguments}
    return ResNet(layout_of(**of_layout), attention(**arguments), **ends(**of_ends))


RESNETS: list[tuple[str, str, Callable[..., Attention], dict[str, Any]]] = [
    # prefix, what it is, its arguments, and those of the published ImageNet network
    ("", "plain", plugs.plain, {}),
    ("se_", "SE (channel)", plugs.se, {}),
    ("eca_", "ECA (channel)", plugs.eca, {}),
    ("cbam_", "CBAM (place)", plugs.cbam, {}),
    ("dia_", "DIA (layer)", plugs.dia, {"reduction": 20}),
    ("rla_g_", "RLA_g (layer)", plugs.rla, {"hidden": 32}),
    ("dla_b_", "DLA-B (layer)", plugs.dla_b, {"head_dim": 32, "reduction": 16}),
    ("dla_l_", "DLA-L (layer)", plugs.dla_l, {"head_dim": 32, "reduction": 16}),
    ("mrla_b_", "MRLA-B (layer)", plugs.mrla_b, {"stem": "deep"}),
    ("mrla_l_", "MRLA-L (layer)", plugs.mrla_l, {"head_dim": 32}),
]
for prefix, what, attention, _ in RESNETS:
    register_family(resnet_family(prefix, f"CIFAR, {what}", attention))
for prefix, what, attention, published in RESNETS:
    register_family(imagenet_family(prefix, f"ImageNet, {what}", attention, published))


def attnres_family(prefix: str, description: str, *, blocks: int) -> ModelFamily:
    """Transformers with Attention Residuals."""

    @validate_call
    def build(
        depth: Count,
        *,
        block_size: Count = blocks,
        dim: Count = 128,
        heads: Count = 4,
        kv_heads: Count = 2,
        vocab_size: Count = 256,
        tied: bool = False,
    ) -> Any:
        return Transformer(
            depth,
            block_size=block_size,
            dim=dim,
            heads=heads,
            kv_heads=kv_heads,
            vocab_size=vocab_size,
            tied=tied,
        )

    return ModelFamily(prefix, build, description, (6, 12), "tokens")


@validate_call
def build_gpt(
    depth: Count,
    *,
    dim: Count = 128,
    heads: Count = 4,
    kv_heads: Count = 2,
    vocab_size: Count = 256,
    tied: bool = False,
) -> Any:
    """A plain decoder-only transformer."""
    return Transformer(
        depth,
        attention=None,
        dim=dim,
        heads=heads,
        kv_heads=kv_heads,
        vocab_size=vocab_size,
        tied=tied,
    )


register_family(ModelFamily("gpt", build_gpt, "text, plain", (6, 12), "tokens"))
register_family(attnres_family("attnres", "text, AttnRes", blocks=1))
register_family(attnres_family("attnres_block", "text, block AttnRes", blocks=4))

"""The model registry: names such as `mrla_b_resnet20` plus keyword arguments."""

import difflib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, validate_call
from torch import nn

from ela_probe.errors import ElaProbeError, ModelError
from ela_probe.importing import importable, load_function
from ela_probe.models import plugs
from ela_probe.models.attnres import Transformer
from ela_probe.models.plugs import Attention, Count
from ela_probe.models.resnet import Layout, ResNet, cifar, imagenet

__all__ = ["FAMILIES", "ModelFamily", "ModelSpec", "create_model", "register_family"]


@dataclass(frozen=True)
class ModelFamily:
    """Models of one make and any depth: `name` followed by the depth is a model's name.

    reads: what the models take, "images" or "tokens".
    """

    name: str
    build: Callable[..., nn.Module]
    description: str
    depths: tuple[int, ...] = ()
    reads: Literal["images", "tokens"] = "images"


FAMILIES: dict[str, ModelFamily] = {}


def register_family(family: ModelFamily) -> ModelFamily:
    """Add a family to the registry. Raises ModelError when the name is taken."""
    if family.name in FAMILIES:
        raise ModelError(f"a model family {family.name!r} is registered already; choose another")
    FAMILIES[family.name] = family
    return family


def family_of(name: str) -> ModelFamily | None:
    """The family of a model's name, e.g. of `mrla_b_resnet20`; None if there is none."""
    return FAMILIES.get(name.rstrip("0123456789"))


def create_model(name: str, **arguments: Any) -> nn.Module:
    """Build a model by its registered name, e.g. `create_model("mrla_b_resnet20", head_dim=8)`.

    Raises:
        ModelError: no such name (the nearest is suggested), or arguments that don't fit.
    """
    match = re.fullmatch(r"(.*?)(\d*)", name)
    assert match is not None
    family = FAMILIES.get(match[1])
    if family is None or bool(match[2]) != bool(family.depths):
        known = [f"{f.name}{depth}" for f in FAMILIES.values() for depth in f.depths or ("",)]
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]!r}?" if nearest else "see `ela-probe models`"
        raise ModelError(f"no model is called {name!r}; {hint}")
    if match[2]:
        arguments = {"depth": int(match[2]), **arguments}
    return call_builder(family.build, name, arguments)


class ModelSpec(BaseModel):
    """How a model is built: a registered name, or `package.module:function`, and arguments."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    args: dict[str, Any] = Field(default_factory=dict)
    path: Path | None = Field(None, exclude=True, description="folder of a factory's code; unsaved")

    @property
    def is_factory(self) -> bool:
        return ":" in self.name

    def found_in(self, path: Path | None) -> "ModelSpec":
        """The same model, its factory's code in another folder."""
        return self.model_copy(update={"path": path}) if self.is_factory else self

    def build(self) -> nn.Module:
        """Build it with fresh weights; a factory's module is imported, so its code runs.

        Raises:
            ModelError: unknown name or module, or arguments that don't fit.
        """
        if not self.is_factory:
            return create_model(self.name, **self.args)
        with importable(self.path):
            return call_builder(load_function(self.name, path=self.path), self.name, self.args)


def call_builder(build: Callable[..., Any], name: str, arguments: dict[str, Any]) -> nn.Module:
    try:
        model = build(**arguments)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise ModelError(
            f"{name} does not take {where}={problem.get('input')!r}: {problem['msg']}"
        ) from error
    except ElaProbeError:
        raise
    except Exception as error:
        if not isinstance(error, TypeError) and ":" not in name:  # a fault of ours
            raise
        raise ModelError(
            f"{name} could not be built with {arguments}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{name} returned {type(model).__name__}; expected a torch.nn.Module")
    return model


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


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

"""The model registry: names such as `mrla_b_resnet20` plus keyword arguments."""

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, validate_call
from torch import nn

from ela_probe.errors import ElaProbeError, ModelError
from ela_probe.importing import importable, load_function
from ela_probe.models.attnres import Transformer
from ela_probe.models.resnet import ResNet, cifar, imagenet

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


Count = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]


def resnet_family(attention: str | None, description: str) -> ModelFamily:
    @validate_call(config=ConfigDict(arbitrary_types_allowed=True))
    def build(
        depth: int,
        *,
        block: Literal["basic", "bottleneck"] = "basic",
        num_classes: Count = 10,
        in_channels: Count = 3,
        head_dim: Count = 16,
        drop_path: Probability = 0.0,
    ) -> Any:
        return ResNet(
            cifar(depth, block),
            attention=attention,  # type: ignore[arg-type]
            num_classes=num_classes,
            in_channels=in_channels,
            head_dim=head_dim,
            drop_path=drop_path,
        )

    name = "resnet" if attention is None else f"{attention}_resnet"
    return ModelFamily(name, build, description, (20, 32, 44, 56, 110))


def imagenet_family(
    attention: str | None,
    description: str,
    *,
    published_stem: Literal["plain", "deep"] = "plain",
    published_head_dim: int = 16,
) -> ModelFamily:
    """The defaults of stem and head_dim are those of the published network."""

    @validate_call(config=ConfigDict(arbitrary_types_allowed=True))
    def build(
        depth: int,
        *,
        stem: Literal["plain", "deep"] = published_stem,
        num_classes: Count = 1000,
        in_channels: Count = 3,
        head_dim: Count = published_head_dim,
        drop_path: Probability = 0.0,
    ) -> Any:
        return ResNet(
            imagenet(depth, stem),
            attention=attention,  # type: ignore[arg-type]
            num_classes=num_classes,
            in_channels=in_channels,
            head_dim=head_dim,
            drop_path=drop_path,
        )

    name = "imagenet_resnet" if attention is None else f"{attention}_imagenet_resnet"
    return ModelFamily(name, build, description, (50, 101, 152))


register_family(resnet_family(None, "CIFAR ResNet, no layer attention"))
register_family(resnet_family("mrla_b", "CIFAR ResNet with MRLA-B (softmax weights)"))
register_family(resnet_family("mrla_l", "CIFAR ResNet with MRLA-L (gated recurrence)"))
register_family(imagenet_family(None, "ImageNet ResNet, no layer attention"))
register_family(
    imagenet_family("mrla_b", "ImageNet ResNet with MRLA-B (deep stem)", published_stem="deep")
)
register_family(imagenet_family("mrla_l", "ImageNet ResNet with MRLA-L", published_head_dim=32))


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


register_family(
    ModelFamily("gpt", build_gpt, "language model, no layer attention", (6, 12), "tokens")
)
register_family(attnres_family("attnres", "language model with Attention Residuals", blocks=1))
register_family(
    attnres_family("attnres_block", "language model with block Attention Residuals", blocks=4)
)

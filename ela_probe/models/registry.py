"""The model registry: names such as `mrla_b_resnet20` plus keyword arguments."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError

from ela_probe.errors import ElaProbeError, ModelError
from ela_probe.models.family import ModelFamily
from ela_probe.models.zoo import DETECTOR, ZOO, detectors
from ela_probe.system.messages import class_and_first_line, shortened
from ela_probe.system.user_code import importable, load_function
from ela_probe.system.validation import Strict

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "FAMILIES",
    "ModelFamily",
    "ModelSpec",
    "create_model",
    "family_of",
    "parameter_count",
    "register_family",
]

FAMILIES: dict[str, ModelFamily] = {family.name: family for family in ZOO}


def register_family(family: ModelFamily) -> ModelFamily:
    """Add a family to the registry. Raises ModelError when the name is taken."""
    if family.name in FAMILIES:
        raise ModelError(
            f"a model family {family.name!r} is already registered; choose another name"
        )
    FAMILIES[family.name] = family
    return family


def family_of(name: str) -> ModelFamily | None:
    """The family of a model's name, e.g. of `mrla_b_resnet20`; None if there is none."""
    if (parts := DETECTOR.fullmatch(name)) is not None:
        resnets = family_of(parts["resnet"])
        return None if resnets is None else detectors(parts["kind"], resnets)
    return FAMILIES.get(name.rstrip("0123456789"))


def create_model(name: str, /, **arguments: Any) -> nn.Module:
    """Build a model by its registered name, e.g. `create_model("mrla_b_resnet20", head_dim=8)`.

    Raises:
        ModelError: an unknown name (the nearest known one is suggested), or arguments that do not
            fit.
    """
    if (parts := DETECTOR.fullmatch(name)) is not None:
        family = family_of(name)
        if family is None:
            raise ModelError(
                f"no model is called {shortened(name)!r}; expected {parts['kind']}_NAME_fpn with "
                "the name of a ResNet of `ela-probe models`"
            )
        build = partial(family.build, partial(create_model, parts["resnet"]))
        return call_builder(build, name, arguments)
    match = re.fullmatch(r"(.*?)(\d{0,9})", name)
    if match is None:
        raise ModelError(f"no model is called {shortened(name)!r}; see `ela-probe models`")
    family = FAMILIES.get(match[1])
    if family is None or bool(match[2]) != bool(family.depths):
        known = [f"{f.name}{depth}" for f in FAMILIES.values() for depth in f.depths or ("",)]
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]!r}?" if nearest else "see `ela-probe models`"
        raise ModelError(f"no model is called {shortened(name)!r}; {hint}")
    if match[2]:
        arguments = {"depth": int(match[2]), **arguments}
    return call_builder(family.build, name, arguments)


class ModelSpec(Strict):
    """How to build a model: a registered name, or `package.module:function`, and arguments."""

    name: str
    args: dict[str, Any] = Field(default_factory=dict)
    path: Path | None = Field(
        None, exclude=True, description="folder of a factory's code; not saved"
    )

    @property
    def is_factory(self) -> bool:
        return ":" in self.name

    def found_in(self, path: Path | None) -> ModelSpec:
        """The same model with its factory's code in another folder."""
        return self.model_copy(update={"path": path}) if self.is_factory else self

    def build(self) -> nn.Module:
        """Build it with new weights. A factory's module is imported, which runs its code.

        Raises:
            ModelError: unknown name or module, or arguments that do not fit.
        """
        if not self.is_factory:
            return create_model(self.name, **self.args)
        with importable(self.path):
            return call_builder(load_function(self.name, path=self.path), self.name, self.args)


def call_builder(build: Callable[..., Any], name: str, arguments: dict[str, Any]) -> nn.Module:
    """Call a builder; errors that its arguments cause become a ModelError."""
    from torch import nn

    try:
        model = build(**arguments)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise ModelError(
            f"{name} does not take {shortened(where)}={shortened(repr(problem.get('input')))}: "
            f"{shortened(problem['msg'])}"
        ) from error
    except ElaProbeError:
        raise
    except Exception as error:
        if not isinstance(error, TypeError) and ":" not in name:  # a fault of our own code
            raise
        raise ModelError(
            f"{name} could not be built with {shortened(str(arguments))}: "
            f"{class_and_first_line(error)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{name} returned {type(model).__name__}; expected a torch.nn.Module")
    return model


def parameter_count(model: nn.Module) -> int:
    """The number of parameters; shared ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())

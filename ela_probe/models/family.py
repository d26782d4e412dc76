"""What the registry knows of a family of models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ModelFamily:
    """Models of one design and any depth. A model's name is the family's, then the depth.

    Attributes:
        build: takes the depth and keyword arguments, returns the model.
        depths: the depths to list; any other that `build` takes works too. Empty where the name
            has no depth.
        reads: what the models take: "images" (to classify), "tokens", or "detection": images to
            find objects in.
        parameters: the number of parameters at each of `depths` with default arguments; may be
            left out.
    """

    name: str
    build: Callable[..., nn.Module]
    description: str
    depths: tuple[int, ...] = ()
    reads: Literal["images", "tokens", "detection"] = "images"
    parameters: tuple[int, ...] = ()

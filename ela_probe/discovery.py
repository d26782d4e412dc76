"""Discovery: which stages and sites a model has, how they were found, what else attends."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ela_probe.adapters import Adapter, adapter_for, unwrap
from ela_probe.errors import ModelError
from ela_probe.sites import Stage


@dataclass(frozen=True)
class Bystander:
    """Something that attends but is no layer attention: its module, what it is, and why not."""

    name: str
    what: str
    reason: str


@dataclass(frozen=True)
class Discovery:
    """The layer attention of a model: stages in forward order, the adapter that reads them."""

    stages: tuple[Stage, ...]
    adapter: Adapter
    bystanders: tuple[Bystander, ...] = ()


def discover(model: nn.Module, example_inputs: Any = None) -> Discovery:
    """Find a model's layer attention.

    Raises:
        ModelError: none was found, or the model was compiled.
    """
    model = unwrap(model)
    adapter = adapter_for(model)
    if adapter is None:
        raise ModelError(
            f"no adapter knows the model {type(model).__name__}; expected one of the registry "
            "(see `ela-probe models`) or a class with an adapter "
            "(ela_probe.adapters.register_adapter)"
        )
    stages = adapter.stages(model)
    if not stages:
        raise ModelError(
            f"no layer attention found in this {type(model).__name__}; expected a model whose "
            "layers retrieve from earlier layers, such as mrla_b_resnet20"
        )
    return Discovery(tuple(stages), adapter)


def call(model: nn.Module, inputs: Any) -> Any:
    """Run a model on a tensor, a tuple of arguments or a dict of keyword arguments."""
    if isinstance(inputs, dict):
        return model(**inputs)
    if isinstance(inputs, Sequence) and not isinstance(inputs, str):
        return model(*inputs)
    return model(inputs)

"""Adapters: one a model family. Where its weights are, and how a site is pruned."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor, nn

from ela_probe.errors import PlanError
from ela_probe.sites import Action, Stage


class Adapter(Protocol):
    """What the rest of the package needs to know of a model family."""

    name: str

    def matches(self, model: nn.Module) -> bool:
        """Whether this adapter knows the (unwrapped) model, by structure, not by import path."""

    def stages(self, model: nn.Module) -> list[Stage]:
        """Its stages in forward order; without layer attention an empty list."""

    def weights(
        self, model: nn.Module, stage: Stage, captured: Sequence[tuple[Tensor, ...]]
    ) -> list[Tensor]:
        """From what was read at the sites of a stage in one pass: [samples, ..., sources] each.

        captured: per site the tensors among a module's inputs or outputs, detached.
        """

    def apply(self, model: nn.Module, actions: Mapping[str, Action]) -> None:
        """Carry out actions by site name, in place: what is skipped is gone, parameters too."""


class ReadOnlyAdapter:
    """Defaults for an adapter: weights are the first tensor read, and nothing can be pruned."""

    name = "observed"

    def weights(
        self, model: nn.Module, stage: Stage, captured: Sequence[tuple[Tensor, ...]]
    ) -> list[Tensor]:
        """The first tensor read at each site, samples moved to the front, sources to the end."""
        return [
            tensors[0].movedim(site.axis, -1)[None]
            if site.batch_axis is None
            else tensors[0].movedim((site.batch_axis, site.axis), (0, -1))
            for site, tensors in zip(stage.sites, captured, strict=True)
        ]

    def apply(self, model: nn.Module, actions: Mapping[str, Action]) -> None:
        """Raises PlanError: it takes an adapter to know what to remove."""
        raise cannot_prune(model)


BUILT_IN = ("attnres", "deit", "dia", "kcla", "mrla_base", "mrla_light", "resnet")
ADAPTERS: list[Adapter] = []


def cannot_prune(model: nn.Module) -> PlanError:
    """The error of a model whose family no adapter can prune, with the way out."""
    return PlanError(
        f"no adapter knows how to prune a {type(model).__name__}; analysis and plans work, "
        "and docs/adapters.md shows the thirty lines that make pruning possible"
    )


def register_adapter(adapter: Adapter) -> Adapter:
    """Add an adapter; later ones are asked first."""
    ADAPTERS.insert(0, adapter)
    return adapter


def adapter_for(model: nn.Module) -> Adapter | None:
    """The first adapter that knows the (unwrapped) model."""
    from ela_probe.adapters.plugins import load_plugins

    for family in BUILT_IN:  # each module registers its adapter
        importlib.import_module(f"ela_probe.adapters.{family}")
    load_plugins()
    return next((adapter for adapter in ADAPTERS if adapter.matches(model)), None)

"""Adapters: one a model family. Where its weights are, and how a site is pruned."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from ela_probe.errors import ModelError, PlanError
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
    from ela_probe.adapters import (  # noqa: F401  (they register themselves)
        attnres,
        deit,
        dia,
        kcla,
        mrla_base,
        mrla_light,
        resnet,
    )
    from ela_probe.adapters.plugins import load_plugins

    load_plugins()
    return next((adapter for adapter in ADAPTERS if adapter.matches(model)), None)


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DataParallel or DistributedDataParallel.

    Raises:
        ModelError: it or a part of it was compiled or scripted: hooks may silently never fire.
    """
    while isinstance(model, nn.parallel.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    for name, module in model.named_modules():
        scripted = isinstance(module, torch.jit.ScriptModule)
        compiled = hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
        if scripted or compiled:
            how = "scripted" if scripted else "compiled"
            raise ModelError(
                f"{f'{name} in this model' if name else 'this model'} was {how}, and hooks on a "
                f"{how} module may never fire; probe the module that was given to "
                f"torch.{'jit' if scripted else 'compile'}, in a fresh copy"
            )
    return model

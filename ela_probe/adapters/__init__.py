"""Adapters: one a model family. Where its weights are, and how a site is pruned."""

from collections.abc import Mapping, Sequence
from typing import Protocol

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
        """The first tensor read at each site, its source axis moved to the end."""
        return [
            tensors[0].movedim(site.axis, -1)
            for site, tensors in zip(stage.sites, captured, strict=True)
        ]

    def apply(self, model: nn.Module, actions: Mapping[str, Action]) -> None:
        """Raises PlanError: it takes an adapter to know what to remove."""
        raise PlanError(
            f"no adapter knows how to prune a {type(model).__name__}; analysis and plans work, "
            "and docs/adapters.md shows the thirty lines that make pruning possible"
        )


ADAPTERS: list[Adapter] = []


def register_adapter(adapter: Adapter) -> Adapter:
    """Add an adapter; later ones are asked first."""
    ADAPTERS.insert(0, adapter)
    return adapter


def adapter_for(model: nn.Module) -> Adapter | None:
    """The first adapter that knows the (unwrapped) model."""
    from ela_probe.adapters import dia, kcla, mrla_base, mrla_light, resnet  # noqa: F401

    return next((adapter for adapter in ADAPTERS if adapter.matches(model)), None)


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DataParallel or DistributedDataParallel.

    Raises:
        ModelError: it was compiled: hooks on a compiled module may silently never fire.
    """
    if isinstance(model, nn.parallel.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        raise ModelError(
            "this model was compiled, and hooks on a compiled module may never fire; "
            "probe the module that was given to torch.compile, in a fresh copy"
        )
    return model

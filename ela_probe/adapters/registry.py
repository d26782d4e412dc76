"""The protocol of an adapter, and the registry of all adapters."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from ela_probe.adapters.handover import Handover
from ela_probe.errors import PlanError
from ela_probe.sites import Action, Stage


class Adapter(Protocol):
    """What the rest of the package needs to know about a model family."""

    name: str

    def matches(self, model: nn.Module) -> bool:
        """Whether this adapter knows the unwrapped model, by its structure, not its import path."""

    def stages(self, model: nn.Module) -> list[Stage]:
        """The stages in forward order; an empty list for a model without layer attention."""

    def weights(
        self, model: nn.Module, stage: Stage, captured: Sequence[tuple[Tensor, ...]]
    ) -> list[Tensor]:
        """The weights of each site of a stage in one pass, [samples, ..., sources].

        captured: for each site the tensors among the inputs or outputs of its module, detached.
        """

    def apply(self, model: nn.Module, actions: Mapping[str, Action]) -> None:
        """Carry out actions by site name, in place; what is skipped is removed, parameters too."""


@runtime_checkable
class DamageAdapter(Protocol):
    """What an adapter has besides, so that damage is measured."""

    def handovers(self, model: nn.Module, stage: Stage) -> Mapping[str, Handover]:
        """Where sites hand on their outputs, by site name; a site that is left out gets none."""


@runtime_checkable
class StandInAdapter(DamageAdapter, Protocol):
    """What an adapter has besides, so that retrievals get stand-ins."""

    def stand_in(self, model: nn.Module, site: str, coefficients: Tensor) -> None:
        """Put a stand-in in place of a removed retrieval.

        Args:
            model: the model after `apply` with `skip` or `drop` at this site.
            coefficients: as `models.stand_in.StandIn` takes them.
        """


@runtime_checkable
class MixingAdapter(Protocol):
    """What an adapter has besides, for stages of `signed` weights: what their sites retrieved."""

    def mixed(
        self, model: nn.Module, stage: Stage, captured: Sequence[tuple[Tensor, ...]]
    ) -> list[Tensor]:
        """The mixed values of each site of a stage in one pass, [samples, ...] of one shape.

        captured: as `weights` takes it.
        """


@runtime_checkable
class ReducingAdapter(Protocol):
    """What an adapter has besides, so that no more than the weights is kept of what is read."""

    def reduced(
        self, model: nn.Module, site: str, call: int, captured: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """What `weights` needs of the tensors that were read, computed at once.

        Args:
            site: the qualified name of the module. call: which of its calls in this pass.
            captured: the tensors among its inputs or outputs, detached, not copied.

        Returns: tensors that share no memory with them.
        """


@runtime_checkable
class HeadedAdapter(Protocol):
    """What an adapter has besides, so that divergences are also told by head."""

    def heads(self, model: nn.Module, stage: Stage) -> int:
        """How many heads retrieve at each site of a stage; 1 where they can't be told apart.

        The weights are [samples, heads, ..., sources], or have the heads times something as their
        second axis, head by head.
        """


class ReadOnlyAdapter:
    """Defaults for an adapter: the weights are the first tensor read; nothing can be pruned."""

    name = "observed"

    def weights(
        self, model: nn.Module, stage: Stage, captured: Sequence[tuple[Tensor, ...]]
    ) -> list[Tensor]:
        """The first tensor read at each site, with the samples first and the sources last."""
        return [
            tensors[0].movedim(site.axis, -1)[None]
            if site.batch_axis is None
            else tensors[0].movedim((site.batch_axis, site.axis), (0, -1))
            for site, tensors in zip(stage.sites, captured, strict=True)
        ]

    def apply(self, model: nn.Module, actions: Mapping[str, Action]) -> None:
        """Raises PlanError: only an adapter of the family knows what to remove."""
        raise cannot_prune(model)


BUILT_IN = (
    "attnres",
    "deit",
    "dia",
    "dwa",
    "hyper_connections",
    "inkling",
    "kcla",
    "kimi_k3",
    "layer_sum",
    "mrla_base",
    "mrla_light",
    "open_attnres",
    "resnet",
    "x_transformers",
)
ADAPTERS: list[Adapter] = []


def cannot_prune(model: nn.Module) -> PlanError:
    """The error for a model that no adapter can prune; it says what to do."""
    return PlanError(
        f"no adapter knows how to prune a {type(model).__name__}; analysis and plans work, "
        "and docs/adapters.md shows the thirty lines that make pruning possible"
    )


def register_adapter(adapter: Adapter) -> Adapter:
    """Add an adapter. The latest one is asked first."""
    ADAPTERS.insert(0, adapter)
    return adapter


def adapter_for(model: nn.Module) -> Adapter | None:
    """The first adapter that knows the unwrapped model, or None."""
    from ela_probe.adapters.plugins import load_plugins

    for family in BUILT_IN:  # each module registers its adapter
        importlib.import_module(f"ela_probe.adapters.{family}")
    load_plugins()
    return next((adapter for adapter in ADAPTERS if adapter.matches(model)), None)

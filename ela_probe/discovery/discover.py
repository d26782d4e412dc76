"""Discovery: which stages and sites a model has, how they were found, and what else attends.

Adapters come first, since they know how to prune; else a forward pass is observed.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ela_probe.adapters.registry import Adapter, ReadOnlyAdapter, adapter_for
from ela_probe.discovery.bystanders import Bystander
from ela_probe.discovery.calls import starred
from ela_probe.discovery.capture import Capture
from ela_probe.discovery.observation import Found, Observation, observe
from ela_probe.errors import ModelError
from ela_probe.forward import call, moved, uncompiled, undisturbed, unwrap
from ela_probe.sites import Site, Stage

__all__ = [
    "Bystander",
    "Discovery",
    "DiscoveryWarning",
    "Found",
    "discover",
    "discover_by_adapter",
]


class DiscoveryWarning(UserWarning):
    """Something about the sites had to be guessed; the message says what."""


class ObservedAdapter(ReadOnlyAdapter):
    """Reads the sites that were found by observation; it matches no model and prunes none."""

    def mixed(
        self, model: nn.Module, stage: Stage, captured: Sequence[tuple[Tensor, ...]]
    ) -> list[Tensor]:
        """The results of the weighted sums, with the samples first."""
        return [
            result.movedim(site.values_axis, 0)
            for site, (_, result) in zip(stage.sites, captured, strict=True)
        ]

    def matches(self, model: nn.Module) -> bool:
        return False

    def stages(self, model: nn.Module) -> list[Stage]:
        return []


OBSERVED = ObservedAdapter()


@dataclass(frozen=True)
class Discovery:
    """The layer attention of a model.

    stages: in forward order. adapter: what reads them. bystanders: what else attends, known when
    example inputs were given. found: by site name how it was found, the shape of its weights (None
    without example inputs) and their source axis.
    """

    stages: tuple[Stage, ...]
    adapter: Adapter
    bystanders: tuple[Bystander, ...] = ()
    found: Mapping[str, Found] = field(default_factory=dict)


def discover(model: nn.Module, example_inputs: Any = None, *, batch_axis: int = 0) -> Discovery:
    """Find a model's layer attention.

    Args:
        model: plain or inside DataParallel, DistributedDataParallel or torch.compile, which a part
            of it may be too; it is not changed.
        example_inputs: a small batch, as a tensor, a tuple of arguments or a dict of keyword
            arguments. A model that no adapter knows needs them. For other models they add the
            shapes of the weights and the list of what else attends. They are run through the
            model in eval mode.
        batch_axis: the axis of the inputs that runs over the samples.

    Raises:
        ModelError: none was found, the model does not take the inputs, or it was scripted.
    """
    model = unwrap(model)
    with uncompiled(model):
        return _discover(model, example_inputs, batch_axis)


def _discover(model: nn.Module, example_inputs: Any, batch_axis: int) -> Discovery:
    if example_inputs is None:
        found = discover_by_adapter(model)
        if found is None:
            raise ModelError(
                f"no adapter knows the model {type(model).__name__}; give example inputs, a small "
                "batch to observe it with: discover(model, batch), or --input-size 3,32,32 on the "
                "command line"
            )
        return found
    adapter = adapter_for(model)
    stages = tuple(adapter.stages(model)) if adapter is not None else ()
    seen = observe(model, example_inputs, batch_axis=batch_axis)
    if adapter is not None and stages:
        return _adapted(model, adapter, stages, seen, example_inputs)
    if seen.stages:
        if seen.guess is not None:
            warnings.warn(seen.guess, DiscoveryWarning, stacklevel=3)
        return Discovery(seen.stages, OBSERVED, seen.bystanders, seen.found)
    attends = "; ".join(f"{b.name} ({b.what}), {b.reason}" for b in seen.bystanders)
    raise ModelError(
        f"no layer attention found in this {type(model).__name__}; here is what attends: "
        f"{attends or 'nothing'}"
    )


def discover_by_adapter(model: nn.Module) -> Discovery | None:
    """The layer attention that an adapter knows, without running the model; None if none knows it.

    Pass the result on (`analyze(..., discovery=found)`), so that a model is searched once.

    Raises:
        ModelError: an adapter knows the model, and it has no layer attention; or the model was
            scripted.
    """
    model = unwrap(model)
    with uncompiled(model):
        adapter = adapter_for(model)
        if adapter is None:
            return None
        stages = tuple(adapter.stages(model))
    if not stages:
        raise ModelError(
            f"no layer attention found in this {type(model).__name__}; expected a model whose "
            "layers retrieve from earlier layers, such as mrla_b_resnet20"
        )
    how = Found(f"adapter {adapter.name}")
    found = {site.name: how for stage in stages for site in stage.sites}
    return Discovery(stages, adapter, found=found)


def _adapted(
    model: nn.Module,
    adapter: Adapter,
    stages: tuple[Stage, ...],
    seen: Observation,
    inputs: Any,
) -> Discovery:
    """What an adapter knows, with the shapes of the weights and the bystanders of a run."""
    shapes: list[tuple[int, ...]] = []

    def receive(weights: list[list[Tensor]]) -> None:
        shapes[:] = [tuple(w.shape) for stage in weights for w in stage]

    capture = Capture(model, adapter, stages=stages, receive=receive)
    with capture, undisturbed(model):
        call(model, moved(inputs, model))
    names = [site.name for stage in stages for site in stage.sites]
    starred_sites = [starred(_qualified(site)) for stage in stages for site in stage.sites]
    bystanders = tuple(
        b for b in seen.bystanders if not any(_within(starred(b.name), s) for s in starred_sites)
    )
    found = {
        name: Found(f"adapter {adapter.name}", shape)
        for name, shape in zip(names, shapes, strict=True)
    }
    return Discovery(stages, adapter, bystanders, found)


def _qualified(site: Site) -> str:
    """The name of a site in the whole model; a detector's site is named as in its ResNet."""
    place = site.module.find(f".{site.name}")
    return site.name if place < 0 else site.module[: place + 1 + len(site.name)]


def _within(name: str, site: str) -> bool:
    return name == site or name.startswith(f"{site}.")

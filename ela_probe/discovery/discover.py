"""Discovery: which stages and sites a model has, how they were found, what else attends.

Adapters first, since they know how to prune; else by observation of a forward pass.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ela_probe.adapters.registry import Adapter, ReadOnlyAdapter, adapter_for
from ela_probe.discovery.bystanders import Bystander, pattern
from ela_probe.discovery.capture import Capture
from ela_probe.discovery.observation import Found, Observation, observe
from ela_probe.errors import ModelError
from ela_probe.forward import call, moved, undisturbed, unwrap
from ela_probe.sites import Stage

__all__ = ["Bystander", "Discovery", "Found", "call", "discover"]


class ObservedAdapter(ReadOnlyAdapter):
    """Reads what was observed; it claims no model and prunes none."""

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
        model: plain or inside DataParallel or DistributedDataParallel; it is not changed.
        example_inputs: a small batch, as a tensor, a tuple of arguments or a dict of keyword
            arguments. Needed for a model that no adapter knows; with them it is also told what
            else attends. They are run through the model twice, in eval mode.
        batch_axis: the axis of the inputs that runs over the samples.

    Raises:
        ModelError: none was found, the model does not take the inputs, or it was compiled.
    """
    model = unwrap(model)
    adapter = adapter_for(model)
    stages = tuple(adapter.stages(model)) if adapter is not None else ()
    seen = None
    if example_inputs is not None:
        seen = observe(model, example_inputs, batch_axis=batch_axis)
    if adapter is not None and stages:
        return _adapted(model, adapter, stages, seen, example_inputs)
    if seen is not None and seen.stages:
        return Discovery(seen.stages, OBSERVED, seen.bystanders, seen.found)
    kind = type(model).__name__
    if seen is None and adapter is None:
        raise ModelError(
            f"no adapter knows the model {kind}; give example inputs, a small batch to observe it "
            "with: discover(model, batch), or --input-size 3,32,32 on the command line"
        )
    if seen is None:
        raise ModelError(
            f"no layer attention found in this {kind}; expected a model whose layers retrieve "
            "from earlier layers, such as mrla_b_resnet20"
        )
    attends = "; ".join(f"{b.name} ({b.what}), {b.reason}" for b in seen.bystanders)
    raise ModelError(
        f"no layer attention found in this {kind}; here is what attends: {attends or 'nothing'}"
    )


def _adapted(
    model: nn.Module,
    adapter: Adapter,
    stages: tuple[Stage, ...],
    seen: Observation | None,
    inputs: Any,
) -> Discovery:
    """What an adapter knows, with shapes and bystanders when the model was run."""
    names = [site.name for stage in stages for site in stage.sites]
    shapes: list[tuple[int, ...] | None] = [None] * len(names)
    bystanders: tuple[Bystander, ...] = ()
    if seen is not None:

        def receive(weights: list[list[Tensor]]) -> None:
            shapes[:] = [tuple(w.shape) for stage in weights for w in stage]

        capture = Capture(model, adapter, stages=stages, receive=receive)
        with capture, undisturbed(model):
            call(model, moved(inputs, model))
        inside = [pattern(name) for name in names]
        bystanders = tuple(
            b for b in seen.bystanders if not any(_within(pattern(b.name), name) for name in inside)
        )
    found = {
        name: Found(f"adapter {adapter.name}", shape)
        for name, shape in zip(names, shapes, strict=True)
    }
    return Discovery(stages, adapter, bystanders, found)


def _within(name: str, site: str) -> bool:
    return name == site or name.startswith(f"{site}.")

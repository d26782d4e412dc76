"""Adapters: one a model family. Where its weights are, and how a site is pruned."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor, nn

from ela_probe.errors import ModelError
from ela_probe.sites import Action, Stage


class Adapter(Protocol):
    """What the rest of the package needs to know of a model family."""

    name: str

    def matches(self, model: nn.Module) -> bool:
        """Whether this adapter knows the (unwrapped) model, by structure."""

    def stages(self, model: nn.Module) -> list[Stage]:
        """Its stages in forward order; without layer attention an empty list."""

    def weights(self, stage: Stage, taps: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
        """From what the taps of a stage received in one pass: [samples, ..., sources] a site."""

    def apply(self, model: nn.Module, actions: Mapping[str, Action]) -> None:
        """Carry out actions by site name, in place: what is skipped is gone, parameters too."""


ADAPTERS: list[Adapter] = []


def register_adapter(adapter: Adapter) -> Adapter:
    """Add an adapter; later ones are asked first."""
    ADAPTERS.insert(0, adapter)
    return adapter


def adapter_for(model: nn.Module) -> Adapter:
    """The adapter that knows the model.

    Raises:
        ModelError: none does, or the model has no layer attention.
    """
    from ela_probe.adapters import resnet  # noqa: F401  (registers itself)

    for adapter in ADAPTERS:
        if adapter.matches(model):
            if not adapter.stages(model):
                raise ModelError(
                    f"no layer attention found in this {type(model).__name__}; expected a model "
                    "whose layers retrieve from earlier layers, such as mrla_b_resnet20"
                )
            return adapter
    raise ModelError(
        f"no adapter knows the model {type(model).__name__}; expected one of the registry "
        "(see `ela-probe models`) or a class with an adapter (ela_probe.adapters.register_adapter)"
    )


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

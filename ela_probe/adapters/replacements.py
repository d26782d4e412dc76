"""Modules that replace a removed retrieval in published code, and the check that they fit.

A published layer takes features and what earlier layers pass on, and returns what it adds to the
features and what it passes on itself. The replacements add a zero without dimensions.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ela_probe.errors import PlanError
from ela_probe.sites import Action, Site
from ela_probe.system.nested_tensors import tensors_of


class NoRetrieval(nn.Module):
    """Adds nothing, in a family whose layers pass nothing on."""

    def forward(self, x: Tensor, *ignored: Any) -> Tensor:
        return x.new_zeros(())


class NoSource(nn.Module):
    """Adds nothing and passes on unchanged what it takes: later layers do not see this one."""

    def forward(self, x: Tensor, *passed_on: Any) -> tuple[Any, ...]:
        return x.new_zeros(()), *passed_on


class ProjectedSource(nn.Module):
    """Adds nothing and passes on the key and the value of an MRLA-B layer with the earlier ones."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.Wk, self.Wv = layer.get_submodule("Wk"), layer.get_submodule("Wv")

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x: [b, c, h, w]; keys: [b, t-1, c]; values: [b, t-1, c, h, w]."""
        key = self.Wk(x.mean(dim=(2, 3)).unsqueeze(1))
        value = self.Wv(x).unsqueeze(1)
        return x.new_zeros(()), torch.cat((keys, key), 1), torch.cat((values, value), 1)


def trial_tensors(layer: nn.Module, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Random tensors for a trial run of a layer, the same each time."""
    weight = layer.get_parameter("Wv.weight")
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(weight) for shape in shapes]


@torch.no_grad()
def passes_on_the_same(layer: nn.Module, replacement: nn.Module, *inputs: Any) -> bool:
    """Whether a replacement passes on what the layer does, by a trial run in eval mode."""
    expected = list(tensors_of(copy.deepcopy(layer).eval()(*inputs)[1:]))
    got = list(tensors_of(replacement(*inputs)[1:]))
    return len(got) == len(expected) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-2, atol=1e-4)
        for a, b in zip(got, expected, strict=True)
    )


def refuse_recur(actions: Mapping[str, Action]) -> None:
    """Raises PlanError: no module of published code can `recur`."""
    for name, action in actions.items():
        if action == "recur":
            raise PlanError(
                f"{name}: got the action 'recur', but published code has no recurrent form; use "
                "keep, skip or drop"
            )


def refuse_recur_and_drop(
    sites: Sequence[Site], actions: Mapping[str, Action], *, recur: str, drop: str
) -> None:
    """Raises PlanError for `recur`, and for `drop` in front of a retrieval that stays.

    Args:
        sites: of a stage, in order. recur, drop: why, as the end of the message.
    """
    for position, site in enumerate(sites):
        action = actions.get(site.name, "keep")
        if action == "recur":
            raise PlanError(f"{site.name} cannot recur: {recur}; use keep or skip")
        later = sites[position + 1 :]
        if action == "drop" and any(actions.get(s.name, "keep") == "keep" for s in later):
            raise PlanError(f"{site.name} cannot be dropped: {drop}; use skip")


SUM_CHANGES = "the sum of its running block changes from site to site"
SUM_WITHOUT = (
    "the sources are sums over the sublayers of a block, and a sum without one of them is another "
    "source"
)

"""MRLA-B as published, in the ResNets of CIFAR and ImageNet, and what has the same modules.

That is the layer attention of its equation 4, and DLA-B.

A layer has Wq, Wk, Wv and a `softmax` module over its sources; `init_cell` starts a stage.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ela_probe.adapters.placement import (
    Placement,
    has_projections,
    placements,
    refuse_recur,
    stage_name,
)
from ela_probe.adapters.registry import ReadOnlyAdapter, register_adapter
from ela_probe.errors import PlanError
from ela_probe.sites import Action, Site, Stage


class MRLABaseAdapter(ReadOnlyAdapter):
    """Sites are the blocks' retrievals; their weights leave the `softmax` module.

    Pruning replaces the layer by what it passes on to later ones (`skip`) or by nothing (`drop`).
    The network's own forward stays: its block adds a zero of no dimensions in place of the
    retrieval. Names in the state dict stay too.
    """

    name = "mrla-b"

    def matches(self, model: nn.Module) -> bool:
        layers = (place.module for place in retrievals(model) if is_base_layer(place.module))
        first = next(layers, None)
        return first is not None and not leaves_softmax_unused(first)

    def stages(self, model: nn.Module) -> list[Stage]:
        stages: dict[str, list[Site]] = {}
        sites: list[Site] = []
        sources = 0
        for place in retrievals(model):
            layer = place.module
            if getattr(layer, "init_cell", False):
                sites, sources = [], 0
                stages[stage_name(model, place.name, stages)] = sites
            sources += not isinstance(layer, NoSource)
            if is_base_layer(layer):
                sites.append(Site(place.name, f"{place.module_name}.softmax", sources, "output"))
        return [Stage(name, "softmax", tuple(sites)) for name, sites in stages.items()]

    def weights(
        self, model: nn.Module, stage: Stage, captured: Sequence[tuple[Tensor, ...]]
    ) -> list[Tensor]:
        """[samples, heads, 1, sources] as read; the axis of the one query goes."""
        return [tensors[0].squeeze(-2) for tensors in captured]

    def apply(self, model: nn.Module, actions: Mapping[str, Action]) -> None:
        refuse_recur(actions)
        for place in list(retrievals(model)):
            action = actions.get(place.name, "keep")
            if action == "keep":
                continue
            layer = place.module
            left = left_by(place.name, layer) if action == "skip" else NoSource()
            setattr(place.wrapper, place.layer, left.train(layer.training))
            place.silence()


class NoSource(nn.Module):
    """A dropped retrieval: adds nothing, passes the earlier keys and values on untouched."""

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x.new_zeros(()), keys, values


class ProjectedSource(nn.Module):
    """What a skipped retrieval of MRLA-B leaves: its key and its value.

    x: [b, c, h, w]; keys: [b, t-1, c]; values: [b, t-1, c, h, w].
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.Wk, self.Wv = layer.get_submodule("Wk"), layer.get_submodule("Wv")

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        key = self.Wk(x.mean(dim=(2, 3)).unsqueeze(1))
        value = self.Wv(x).unsqueeze(1)
        return x.new_zeros(()), torch.cat((keys, key), 1), torch.cat((values, value), 1)


class RawSource(nn.Module):
    """What a skipped retrieval of equation 4 leaves: its features, projected by later layers."""

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        key = x.mean(dim=(2, 3)).unsqueeze(1)
        return x.new_zeros(()), torch.cat((keys, key), 1), torch.cat((values, x.unsqueeze(1)), 1)


def retrievals(model: nn.Module) -> Iterator[Placement]:
    """The retrievals, and what pruning left of others."""
    return placements(
        model,
        lambda m: is_base_layer(m) or isinstance(m, NoSource | ProjectedSource | RawSource),
    )


def is_base_layer(module: nn.Module) -> bool:
    """Whether it has the parts of an MRLA-B layer: a softmax over sources, and heads."""
    return (
        has_projections(module)
        and isinstance(module._modules.get("softmax"), nn.Softmax)
        and isinstance(getattr(module, "heads", None), int)
        and isinstance(getattr(module, "init_cell", None), bool)
    )


@torch.no_grad()
def leaves_softmax_unused(layer: nn.Module) -> bool:
    """Whether a trial run never calls the layer's `softmax`, as in linear attention over layers.

    False where the layer doesn't take the trial's inputs: then its structure decides.
    """
    trial = copy.deepcopy(layer).eval()
    calls: list[nn.Module] = []
    trial.get_submodule("softmax").register_forward_hook(lambda module, *_: calls.append(module))
    try:
        trial(*trial_inputs(layer))
    except (RuntimeError, TypeError, ValueError):
        return False
    return not calls


def trial_inputs(layer: nn.Module) -> list[Tensor]:
    """Random x [2, c, 4, 4], keys [2, 1, c] and values [2, 1, c, 4, 4] of one earlier layer."""
    weight = layer.get_parameter("Wv.weight")
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=generator).to(weight)
        for shape in ((2, len(weight), 4, 4), (2, 1, len(weight)), (2, 1, len(weight), 4, 4))
    ]


@torch.no_grad()
def left_by(name: str, layer: nn.Module) -> nn.Module:
    """The source that a layer is to later ones, found by a trial run.

    MRLA-B passes projected keys and values on, equation 4 raw features; the modules are the same.

    Raises:
        PlanError: the layer passes on something else.
    """
    x, keys, values = trial_inputs(layer)
    passed_on = copy.deepcopy(layer).eval()(x, keys, values)[1:]
    for source in (ProjectedSource(layer), RawSource()):
        alike = source(x, keys, values)[1:]
        if all(
            a.shape == b.shape and torch.allclose(a, b, rtol=1e-2, atol=1e-4)
            for a, b in zip(passed_on, alike, strict=True)
        ):
            return source
    raise PlanError(
        f"{name} looks like MRLA-B, but passes on neither its keys and values nor its features; "
        "use drop in place of skip, or write an adapter (docs/adapters.md)"
    )


register_adapter(MRLABaseAdapter())

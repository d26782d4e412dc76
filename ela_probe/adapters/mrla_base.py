"""MRLA-B as published, in ResNets for CIFAR and ImageNet, and two families with the same modules.

These are the layer attention of its equation 4, and DLA-B. A layer has Wq, Wk, Wv and a `softmax`
module over its sources; `init_cell` starts a stage.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ela_probe.adapters.placement import (
    AddedRetrievals,
    Placement,
    has_projections,
    placements,
    stage_name,
)
from ela_probe.adapters.registry import ReadOnlyAdapter, register_adapter
from ela_probe.adapters.replacements import (
    NoSource,
    ProjectedSource,
    passes_on_the_same,
    refuse_recur,
    trial_tensors,
)
from ela_probe.adapters.weights import heads_of_layer
from ela_probe.errors import PlanError
from ela_probe.sites import Action, Site, Stage


class MRLABaseAdapter(AddedRetrievals, ReadOnlyAdapter):
    """Sites are the retrievals of the blocks; the weights are the output of the `softmax` module.

    Pruning replaces the layer by a module that passes on its key and value (`skip`) or nothing of
    its own (`drop`). The forward pass of the network stays as it is: a block adds a zero without
    dimensions instead of the retrieval. Names in the state dict do not change.
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
        """[samples, heads, sources]; read is [samples, heads, 1, sources]."""
        return [tensors[0].squeeze(-2) for tensors in captured]

    def heads(self, model: nn.Module, stage: Stage) -> int:
        return heads_of_layer(model, stage)

    def apply(self, model: nn.Module, actions: Mapping[str, Action]) -> None:
        refuse_recur(actions)
        for place in list(retrievals(model)):
            action = actions.get(place.name, "keep")
            if action == "keep":
                continue
            layer = place.module
            left = source_like(place.name, layer) if action == "skip" else NoSource()
            setattr(place.wrapper, place.layer, left.train(layer.training))
            place.silence()


class RawSource(nn.Module):
    """Adds nothing and passes on its features: in equation 4 later layers project them."""

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        key = x.mean(dim=(2, 3)).unsqueeze(1)
        return x.new_zeros(()), torch.cat((keys, key), 1), torch.cat((values, x.unsqueeze(1)), 1)


def retrievals(model: nn.Module) -> Iterator[Placement]:
    """The retrievals, and the replacements of pruned ones."""
    return placements(
        model,
        lambda m: is_base_layer(m) or isinstance(m, NoSource | ProjectedSource | RawSource),
    )


def is_base_layer(module: nn.Module) -> bool:
    """Whether it has the parts of an MRLA-B layer."""
    return (
        has_projections(module)
        and isinstance(module._modules.get("softmax"), nn.Softmax)
        and isinstance(getattr(module, "heads", None), int)
        and isinstance(getattr(module, "init_cell", None), bool)
    )


@torch.no_grad()
def leaves_softmax_unused(layer: nn.Module) -> bool:
    """Whether a trial run does not call the layer's `softmax`, as in linear attention over layers.

    False where the layer does not take the inputs of the trial: then its structure decides.
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
    channels = len(layer.get_parameter("Wv.weight"))
    return trial_tensors(layer, (2, channels, 4, 4), (2, 1, channels), (2, 1, channels, 4, 4))


def source_like(name: str, layer: nn.Module) -> nn.Module:
    """What replaces a skipped layer, found by a trial run.

    MRLA-B passes on projected keys and values, equation 4 raw features; their modules are the same.

    Raises:
        PlanError: the layer passes on something else.
    """
    for source in (ProjectedSource(layer), RawSource()):
        if passes_on_the_same(layer, source, *trial_inputs(layer)):
            return source
    raise PlanError(
        f"{name} looks like MRLA-B, but passes on neither its keys and values nor its features; "
        "use drop instead of skip, or write an adapter (docs/adapters.md)"
    )


register_adapter(MRLABaseAdapter())

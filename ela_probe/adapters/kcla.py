"""KCLA as published (arXiv 2606.28405): running sums of features, weighted by their keys' norms.

With c_t = exp(min(‖k_t‖ / d, 10)) per head, a layer passes on u_t = u_{t-1} + c_t x_t and
z_t = z_{t-1} + c_t, and retrieves u_t / (z_t + 1e-3). So w_t(s) = c_s / z_t: a softmax over the
sources whose logits depend on no query. (The 1e-3 scales all weights by the same factor, at least
0.999.) The first layer of each later stage takes u / z of the stage before as an additional first
source, with a key and so a c of its own.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ela_probe.adapters.placement import (
    AddedRetrievals,
    along_channels,
    has_projections,
    stage_name,
)
from ela_probe.adapters.registry import ReadOnlyAdapter, register_adapter
from ela_probe.adapters.replacements import (
    NoSource,
    passes_on_the_same,
    refuse_recur,
    trial_tensors,
)
from ela_probe.errors import PlanError
from ela_probe.sites import Action, Site, Stage

Info = list[Tensor]  # u [b, heads, d, h, w], sum of keys [b, heads, d, 1, 1], z [b, heads, 1, 1, 1]


class KCLAAdapter(AddedRetrievals, ReadOnlyAdapter):
    """Sites are the layers; `init_layer` starts a stage.

    c_t is the difference between the z of two sites. In a pruned network the c of skipped layers
    are part of the difference at the next site, and count as part of its source.
    """

    name = "kcla"

    def matches(self, model: nn.Module) -> bool:
        return any(True for _ in layers(model))

    def stages(self, model: nn.Module) -> list[Stage]:
        stages: dict[str, list[Site]] = {}
        sites: list[Site] = []
        for name, layer in layers(model):
            if layer.init_layer or not stages:
                sites = stages[stage_name(model, name, stages)] = []
            carried = len(stages) > 1  # the first stage has no stage before it
            sites.append(Site(name, name, len(sites) + 1 + carried, "output"))
        last = next(reversed(stages), None)
        return [
            Stage(name, "softmax", tuple(sites), carried_over=name != last)
            for name, sites in stages.items()
        ]

    def weights(
        self, model: nn.Module, stage: Stage, captured: Sequence[tuple[Tensor, ...]]
    ) -> list[Tensor]:
        """[samples, heads, sources]; read are (retrieved, u, sum of keys, z)."""
        sums = [tensors[3].double().flatten(1) for tensors in captured]
        steps = [sums[0], *(b - a for a, b in itertools.pairwise(sums))]
        if stage.sizes[0] == 2:
            distance = model.get_parameter(f"{stage.sites[0].name}.norm_d")
            own = strength(captured[0][2], distance).double().flatten(1)
            steps[:1] = [sums[0] - own, own]
        contributions = torch.stack(steps, dim=-1).clamp_min(0.0)
        return [
            contributions[..., :size] / contributions[..., :size].sum(-1, keepdim=True)
            for size in stage.sizes
        ]

    def heads(self, model: nn.Module, stage: Stage) -> int:
        return model.get_parameter(f"{stage.sites[0].name}.norm_d").shape[1]

    def apply(self, model: nn.Module, actions: Mapping[str, Action]) -> None:
        refuse_recur(actions)
        skipped = [(n, m) for n, m in model.named_modules() if isinstance(m, RunningSource)]
        for name, layer in [*layers(model), *skipped]:
            action = actions.get(name, "keep")
            if action == "drop":
                model.set_submodule(name, NoSource().train(layer.training))
            elif action == "skip" and not isinstance(layer, RunningSource):
                model.set_submodule(name, running_source(name, layer).train(layer.training))


class RunningSource(nn.Module):
    """Adds nothing, and adds its key and its features to the running sums."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.Wk, self.norm_d = layer.get_submodule("Wk"), layer.get_parameter("norm_d")

    def forward(self, x: Tensor, info: Info) -> tuple[Tensor, Info]:
        u, keys, z = info
        key = self.Wk(x.mean(dim=(2, 3)).unsqueeze(1))
        key = key.view(len(x), self.norm_d.shape[1], -1, 1, 1)
        c = strength(key, self.norm_d)
        features = x.unflatten(1, (self.norm_d.shape[1], -1))
        return x.new_zeros(()), [u.view_as(features) + c * features, keys + key, z + c]


def strength(key: Tensor, distance: Tensor) -> Tensor:
    """c = exp(min(‖key‖ / d, 10)). key: [b, heads, d, 1, 1]. Returns [b, heads, 1, 1, 1]."""
    return (key.norm(dim=2, keepdim=True) / distance).clamp(max=10).exp()


def layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every KCLA layer of a model, with its name."""
    for name, module in model.named_modules():
        if is_layer(module):
            yield name, module


def is_layer(module: nn.Module) -> bool:
    """Whether it has the parts of a KCLA layer."""
    if not (has_projections(module) and isinstance(getattr(module, "init_layer", None), bool)):
        return False
    distance, gate = getattr(module, "norm_d", None), module._modules.get("head_att")
    return (
        isinstance(distance, nn.Parameter)
        and isinstance(gate, nn.Linear)
        and distance.shape == (1, gate.in_features, 1, 1, 1)
        and (not module.init_layer or along_channels(module._modules.get("u_Wk")))
    )


def running_source(name: str, layer: nn.Module) -> RunningSource:
    """What replaces a skipped layer.

    Raises:
        PlanError: the layer passes on other sums, by a trial run.
    """
    source = RunningSource(layer)
    (x,) = trial_tensors(layer, (2, len(layer.get_parameter("Wv.weight")), 4, 4))
    x[1] *= 1000  # far beyond the limit of the exponent
    split = x.unflatten(1, (source.norm_d.shape[1], -1))
    info = [split, split[..., :1, :1], torch.ones_like(split[:, :, :1, :1, :1])]
    if passes_on_the_same(layer, source, x, info):
        return source
    raise PlanError(
        f"{name} looks like KCLA, but does not pass on the sums that its keys' norms give; use "
        "drop instead of skip, or write an adapter (docs/adapters.md)"
    )


register_adapter(KCLAAdapter())

"""KCLA as published (arXiv 2606.28405): running sums of features, weighted by their keys' norms.

A layer has c_t = exp(min(‖k_t‖ / d, 10)) per head and passes on u_t = u_{t-1} + c_t x_t and
z_t = z_{t-1} + c_t; it retrieves u_t / (z_t + 1e-3). So w_t(s) = c_s / z_t: a softmax over the
sources, of logits that no query enters. (The 1e-3 scales all weights alike, by at least 0.999.)
The first layer of a later stage takes u / z of the stage before as one more source, ahead of its
own, with a key and so a c of its own.
"""

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ela_probe.adapters.placement import (
    along_channels,
    has_projections,
    refuse_recur,
    stage_name,
)
from ela_probe.adapters.registry import ReadOnlyAdapter, register_adapter
from ela_probe.errors import PlanError
from ela_probe.sites import Action, Site, Stage

Info = list[Tensor]  # u [b, heads, d, h, w], the sum of keys [b, heads, d, 1, 1], z [b, heads, 1..]


class KCLAAdapter(ReadOnlyAdapter):
    """Sites are the layers themselves; `init_layer` starts a stage.

    The weights come from the z of the sites: c_t is its step. In a pruned network the steps of
    skipped layers are in that of the next site, and count as part of its source.
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
            carried = len(stages) > 1  # the first stage has none before it
            sites.append(Site(name, name, len(sites) + 1 + carried, "output"))
        last = next(reversed(stages), None)
        return [
            Stage(name, "softmax", tuple(sites), carried_over=name != last)
            for name, sites in stages.items()
        ]

    def weights(
        self, model: nn.Module, stage: Stage, captured: Sequence[tuple[Tensor, ...]]
    ) -> list[Tensor]:
        """From (retrieved, u, sum of keys, z) as read: [samples, heads, sources]."""
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

    def apply(self, model: nn.Module, actions: Mapping[str, Action]) -> None:
        refuse_recur(actions)
        skipped = [(n, m) for n, m in model.named_modules() if isinstance(m, RunningSource)]
        for name, layer in [*layers(model), *skipped]:
            action = actions.get(name, "keep")
            if action == "drop":
                model.set_submodule(name, NoSource().train(layer.training))
            elif action == "skip" and not isinstance(layer, RunningSource):
                model.set_submodule(name, left_by(name, layer).train(layer.training))


class NoSource(nn.Module):
    """A dropped layer: adds nothing, passes the sums on untouched."""

    def forward(self, x: Tensor, info: Info) -> tuple[Tensor, Info]:
        return x.new_zeros(()), info


class RunningSource(nn.Module):
    """What a skipped layer leaves: its key, and its features in the running sums."""

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


@torch.no_grad()
def left_by(name: str, layer: nn.Module) -> RunningSource:
    """The source that a layer is to later ones, held against the layer in a trial run.

    Raises:
        PlanError: the layer passes on something else.
    """
    weight = layer.get_parameter("Wv.weight")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, len(weight), 4, 4, generator=generator).to(weight)
    x[1] *= 1000  # far beyond the limit of the exponent
    source = RunningSource(layer)
    split = x.unflatten(1, (source.norm_d.shape[1], -1))
    info = [split, split[..., :1, :1], torch.ones_like(split[:, :, :1, :1, :1])]
    passed_on, alike = copy.deepcopy(layer).eval()(x, info)[1], source(x, info)[1]
    if len(passed_on) == 3 and all(
        torch.allclose(a, b, rtol=1e-2, atol=1e-4) for a, b in zip(passed_on, alike, strict=True)
    ):
        return source
    raise PlanError(
        f"{name} looks like KCLA, but passes on other sums than its keys' norms make; "
        "use drop in place of skip, or write an adapter (docs/adapters.md)"
    )


register_adapter(KCLAAdapter())

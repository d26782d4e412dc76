"""The adapter of the layer integration of x-transformers, found by structure.

A stack of layers has `layer_integrators`, one for each sublayer, that mix the inputs x_0, ..., x_t
of all sublayers so far: Σ_s w(s) x_s. Their views are the inputs of query, key and value. There are
two kinds. Layer-integrated memory (LIMe, arXiv 2502.09245) forms the weights from x_t alone, with a
linear map and a softmax; with a ReLU they are no distribution, and are left to observation.
Attention residuals (arXiv 2603.15031) form them as softmax_s(q(x_t) · n(x_s) / √dim).
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ela_probe.adapters.handover import Alternatives, Handover, Passed
from ela_probe.adapters.registry import ReadOnlyAdapter, register_adapter
from ela_probe.adapters.replacements import refuse_recur_and_drop
from ela_probe.models.stand_in import StandIn
from ela_probe.sites import Action, Site, Stage

INTEGRATORS, WEIGHTS = "layer_integrators", "to_weights"


class XTransformersAdapter(ReadOnlyAdapter):
    """A stage is a stack of layers; a site is an integrator, and its views are heads.

    Where the numbers of views in a stage differ, the weights are means over views.
    """

    name = "x_transformers"

    def matches(self, model: nn.Module) -> bool:
        return any(True for _ in stacks(model))

    def stages(self, model: nn.Module) -> list[Stage]:
        found = []
        for name, stack in stacks(model):
            prefix = f"{name}.{INTEGRATORS}" if name else INTEGRATORS
            integrators = stack.get_submodule(INTEGRATORS)
            sites = [
                site_of(f"{prefix}.{t}", part, t + 1)
                for t, (_, part) in enumerate(integrators._modules.items())
                if part is not None and (is_memory(part) or is_residual(part))
            ]
            if sites:
                found.append(Stage(prefix, "softmax", tuple(sites)))
        return found

    def reduced(
        self, model: nn.Module, site: str, call: int, captured: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """The weights [samples, tokens, views, sources].

        captured: of LIMe the weights [views, samples, tokens, sources]; of attention residuals the
        inputs of the integrator, x_t and the list of x_0, ..., x_t, each [samples, tokens, dim].
        """
        if site.endswith(f".{WEIGHTS}"):
            return (captured[0].movedim(0, 2).clone(),)
        integrator: Any = model.get_submodule(site)
        states = (
            captured[-1] if captured[-1].dim() > captured[0].dim() else torch.stack(captured[1:])
        )
        device = states.device.type
        mixed = torch.amp.is_autocast_available(device)
        with torch.autocast(device, enabled=False) if mixed else nullcontext():
            added = integrator.to_query(states[-1]).unflatten(-1, (views_of(integrator), -1))
            query = integrator.norm(states[-1].unsqueeze(-2) + added)
            logits = torch.einsum("bnvd,lbnd->bnvl", query, integrator.to_keys(states))
            return (torch.softmax(logits * integrator.scale, dim=-1),)

    def weights(
        self, model: nn.Module, stage: Stage, captured: Sequence[tuple[Tensor, ...]]
    ) -> list[Tensor]:
        """[samples, tokens, sources], or with views in front of the sources where all have them."""
        found = [weights for (weights,) in captured]
        views = {weights.shape[-2] for weights in found}
        if views == {found[0].shape[-2]} and views != {1}:
            return found
        return [weights.mean(dim=-2) for weights in found]

    def apply(self, model: nn.Module, actions: Mapping[str, Action]) -> None:
        for stage in self.stages(model):
            refuse_recur_and_drop(
                stage.sites,
                actions,
                recur="it has no recurrent form",
                drop="the stack records the input of every sublayer, whatever it retrieves",
            )
        for site in [site for stage in self.stages(model) for site in stage.sites]:
            if actions.get(site.name, "keep") != "keep":
                integrator = model.get_submodule(site.name)
                left = LatestInput(views_of(integrator)).train(integrator.training)
                model.set_submodule(site.name, left)

    def handovers(self, model: nn.Module, stage: Stage) -> dict[str, Handover]:
        return {
            site.name: handover_of(site.name, views_of(model.get_submodule(site.name)))
            for site in stage.sites
        }

    def stand_in(self, model: nn.Module, site: str, coefficients: Tensor) -> None:
        left = model.get_submodule(site)
        assert isinstance(left, LatestInput)
        left.stand_in = StandIn(coefficients, channel_axis=-1)


class LatestInput(nn.Module):
    """x_t for every view, as in a plain transformer: what is left of an integrator under `skip`.

    With `affine` a stand-in scales and shifts it, by channel and view.
    """

    def __init__(self, views: int) -> None:
        super().__init__()
        self.views = views
        self.stand_in: nn.Module | None = None

    def forward(self, x: Tensor, *hiddens: Any) -> Tensor:
        """x: [samples, tokens, dim]. Returns that, or [views, samples, tokens, dim]."""
        if self.views == 1:
            return x if self.stand_in is None else self.stand_in(x)
        if self.stand_in is None:
            return x.expand(self.views, *x.shape)
        return torch.stack(self.stand_in(torch.cat([x] * self.views, -1)).chunk(self.views, -1))


def handover_of(name: str, views: int) -> Handover:
    """What an integrator hands on: its views, side by side along channels."""

    def tensors(passed: Mapping[str, Passed]) -> Sequence[Tensor]:
        (mixed,) = passed[name].outputs
        y = mixed if views == 1 else torch.cat(tuple(mixed), dim=-1)
        return y, torch.cat([passed[name].inputs[0]] * views, dim=-1)

    return Handover(
        module=name,
        actions=("skip", "affine"),
        reads=(name,),
        tensors=tensors,
        alternatives=lambda y, x: Alternatives(y, (x,)),
        channel_axis=-1,
        outputs=views,
    )


def stacks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The stacks with integrators, by name; their layers run in order, each once."""
    found = []
    for name, module in model.named_modules():
        integrators = module._modules.get(INTEGRATORS)
        if not isinstance(integrators, nn.ModuleList):
            continue
        order = getattr(module, "layers_execute_order", range(len(integrators)))
        parts = [part for part in integrators._modules.values() if part is not None]
        if (
            parts
            and tuple(order) == tuple(range(len(integrators)))
            and all(isinstance(p, LatestInput) or is_memory(p) or is_residual(p) for p in parts)
        ):
            found.append((name, module))
    return found


def site_of(name: str, integrator: nn.Module, sources: int) -> Site:
    """Where an integrator's weights are read."""
    if is_memory(integrator):
        return Site(name, f"{name}.{WEIGHTS}", sources, "output")
    return Site(name, name, sources)


def is_memory(module: Any) -> bool:
    """Whether it is LIMe whose weights are a softmax over the layers."""
    parts = module._modules.get(WEIGHTS) if isinstance(module, nn.Module) else None
    if not isinstance(parts, nn.Sequential) or not isinstance(parts[-1], nn.Softmax):
        return False
    linear = [part for part in parts if isinstance(part, nn.Linear)]
    layers = getattr(module, "num_layers", None)
    return (
        parts[-1].dim == -1
        and len(linear) == 1
        and isinstance(layers, int)
        and linear[0].out_features % layers == 0
    )


def is_residual(module: Any) -> bool:
    """Whether it is attention over the inputs so far, with a query from the latest of them."""
    return (
        isinstance(module, nn.Module)
        and {"to_keys", "to_query", "norm"} <= module._modules.keys()
        and isinstance(getattr(module, "num_views", None), int)
        and isinstance(getattr(module, "scale", None), float)
    )


def views_of(integrator: Any) -> int:
    """How many inputs it forms for its sublayer."""
    if is_memory(integrator):
        linear = next(part for part in integrator.to_weights if isinstance(part, nn.Linear))
        return int(linear.out_features // integrator.num_layers)
    return int(integrator.num_views)


register_adapter(XTransformersAdapter())

"""The adapter of hyper-connections: each branch reads a mix of several residual streams.

Zhu et al., ICLR 2025, arXiv 2409.19606, algorithm 2: with the streams H_s, a branch reads
Σ_s α_s H_s, the streams are mixed with each other, and the branch's output, times β_s, is added to
stream s. Of α = B + scale · tanh(norm(H) W) the first column weights the branch's input.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ela_probe.adapters.handover import Alternatives, Handover, Passed
from ela_probe.adapters.registry import ReadOnlyAdapter, register_adapter
from ela_probe.adapters.replacements import refuse_recur
from ela_probe.sites import Action, Site, Stage

MIXING = ("static_alpha", "dynamic_alpha_fn", "dynamic_alpha_scale")
ADDING = ("static_beta", "dynamic_beta_fn", "dynamic_beta_scale")


class HyperConnectionsAdapter(ReadOnlyAdapter):
    """One stage; a site is the mixing of the streams before a branch.

    `skip` does without all of it: the branch reads the mean of the streams, which is the state of
    a plain residual network where the streams are equal, and the streams pass on unmixed.
    """

    name = "hyper_connections"

    def matches(self, model: nn.Module) -> bool:
        return any(is_connections(m) or isinstance(m, UnmixedStreams) for m in model.modules())

    def stages(self, model: nn.Module) -> list[Stage]:
        sites = tuple(
            Site(name, name, module.num_residual_streams) for name, module in connections_of(model)
        )
        return [Stage("streams", "signed", sites, carried_over=True)] if sites else []

    def reduced(
        self, model: nn.Module, site: str, call: int, captured: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """The weights [samples, ..., streams] and what they mix [samples, ..., channels]."""
        return mixed_by(captured[0], model.get_submodule(site))

    def mixed(
        self, model: nn.Module, stage: Stage, captured: Sequence[tuple[Tensor, ...]]
    ) -> list[Tensor]:
        return [values for _, values in captured]

    def apply(self, model: nn.Module, actions: Mapping[str, Action]) -> None:
        refuse_recur(actions)
        for name, module in list(connections_of(model)):
            if actions.get(name, "keep") != "keep":
                parent, _, child = name.rpartition(".")
                plain = UnmixedStreams(module).train(module.training)
                setattr(model.get_submodule(parent), child, plain)

    def handovers(self, model: nn.Module, stage: Stage) -> dict[str, Handover]:
        return {site.name: _handover(site.name) for site in stage.sites}


def _handover(name: str) -> Handover:
    """Of the tap that `tapped` puts in: it takes the streams, and its output is all that is mixed.

    y is [samples, 1 + streams, ...]: the branch's input and the streams that pass on.
    """
    tap = f"{name}.tap"

    def tensors(passed: Mapping[str, Passed]) -> Sequence[Tensor]:
        return passed[tap].inputs[0].clone(), passed[tap].outputs[0].clone()

    def alternatives(streams: Tensor, y: Tensor) -> Alternatives:
        return Alternatives(y, (torch.cat([streams.mean(dim=1, keepdim=True), streams], dim=1),))

    return Handover(tap, ("skip",), (tap,), tensors, alternatives, within=tapped)


class Tap(nn.Module):
    """Takes the streams and all that was mixed of them, and returns the latter."""

    def forward(self, streams: Tensor, mixed: Tensor) -> Tensor:
        return mixed


@contextmanager
def tapped(model: nn.Module) -> Iterator[None]:
    """A block in which what every site mixes is the output of a module `tap` of its own."""
    found = [module for _, module in connections_of(model) if "tap" not in module._modules]

    def mix(module: Any, residuals: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        branch, passed_on, rest = type(module).width_connection(module, residuals)
        joined = torch.cat([branch.unsqueeze(1), split(passed_on, module)], dim=1)
        joined = module.tap(split(residuals, module), joined)
        return joined[:, 0], joined[:, 1:].flatten(0, 1), rest

    try:
        for module in found:
            module.tap = Tap()
            module.width_connection = partial(mix, module)
        yield
    finally:
        for module in found:
            module.__dict__.pop("width_connection", None)
            module._modules.pop("tap", None)


class UnmixedStreams(nn.Module):
    """Hyper-connections without the mixing of streams; it is called as they are.

    Args:
        connections: they lose their parameters for mixing, and keep those for the branch's output.
    """

    def __init__(self, connections: Any) -> None:
        super().__init__()
        for name in MIXING:
            delattr(connections, name)
        if not connections.add_branch_out_to_residual:
            del connections.norm
        self.connections = connections

    def forward(self, residuals: Tensor, *arguments: Any, **options: Any) -> Any:
        """residuals: [samples · streams, ...], the streams of a sample side by side."""
        module = self.connections
        mean = split(residuals, module).mean(dim=1)

        def add_residual(output: Any) -> Any:
            if not module.add_branch_out_to_residual:
                return output
            (first, *others), tree = tree_flatten(output)
            added = module.depth_connection(first, residuals, beta=beta_of(residuals, module))
            return tree_unflatten([added, *others], tree)

        if module.branch is None:
            return mean, add_residual
        return add_residual(module.branch(mean, *arguments, **options))


def beta_of(residuals: Tensor, module: Any) -> Tensor:
    """How much of the branch's output each stream gets, [samples, ..., 1, streams, 1]."""
    streams = _channels_last(split(residuals, module), module)
    dynamic = module.act(module.norm(streams) @ module.dynamic_beta_fn).movedim(1, -1)
    found: Tensor = (dynamic * module.dynamic_beta_scale + module.static_beta)[..., None, :, None]
    return found


def mixed_by(residuals: Tensor, module: Any) -> tuple[Tensor, Tensor]:
    """The streams' weights [samples, ..., streams], and their mix [samples, ..., channels]."""
    streams = _channels_last(split(residuals, module), module)  # [b, s, ..., d]
    column = module.act(module.norm(streams) @ module.dynamic_alpha_fn[:, 0])  # [b, s, ...]
    static = module.static_alpha[:, 0].view(-1, *[1] * (column.dim() - 2))
    weights = column * module.dynamic_alpha_scale + static
    return weights.movedim(1, -1), (weights[..., None] * streams).sum(dim=1)


def split(residuals: Tensor, module: Any) -> Tensor:
    """[samples · streams, ...] to [samples, streams, ...]."""
    return residuals.unflatten(0, (-1, module.num_residual_streams))


def _channels_last(streams: Tensor, module: Any) -> Tensor:
    return streams.movedim(2, -1) if module.channel_first else streams


def connections_of(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The hyper-connections of a model that mix streams, with their names, in its order."""
    for name, module in model.named_modules():
        if name and is_connections(module):
            yield name, module


def is_connections(module: Any) -> bool:
    """Whether it mixes streams as the definition says, by its parameters and by a trial run."""
    parameters, streams = module._parameters, getattr(module, "num_residual_streams", 0)
    if not isinstance(streams, int) or any(parameters.get(name) is None for name in MIXING):
        return False
    if (getattr(module, "num_fracs", 0), getattr(module, "num_input_views", 0)) != (1, 1):
        return False
    if not all(hasattr(module, name) for name in ("width_connection", "depth_connection", "norm")):
        return False
    adds = getattr(module, "add_branch_out_to_residual", None)
    if not isinstance(adds, bool) or (adds and any(parameters.get(n) is None for n in ADDING)):
        return False
    return parameters["static_alpha"].shape == (streams, streams + 1) and _mixes_the_same(module)


@torch.no_grad()
def _mixes_the_same(module: Any) -> bool:
    """Whether a trial run mixes, and weights the branch's output, as the definition says."""
    dim = len(module.dynamic_alpha_fn)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2 * module.num_residual_streams, 3, dim, generator=generator)
    states = (states.movedim(-1, 1) if module.channel_first else states).to(module.static_alpha)
    try:
        branch, _, rest = type(module).width_connection(module, states)
        mixed = mixed_by(states, module)[1]
        mixed = mixed.movedim(-1, 1) if module.channel_first else mixed
        if not torch.allclose(branch, mixed, rtol=1e-2, atol=1e-4):
            return False
        if not module.add_branch_out_to_residual:
            return True
        beta = beta_of(states, module)
        return rest["beta"].shape == beta.shape and torch.allclose(rest["beta"], beta, atol=1e-4)
    except Exception:  # it is called in another way, or has other shapes
        return False


register_adapter(HyperConnectionsAdapter())

"""Layer-attention weights recomputed from the inputs of published modules.

They use formulas and parameters only, and so check the weights that the probe reads.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ela_probe.adapters.registry import Adapter
from ela_probe.analysis.probe import AttentionProbe
from ela_probe.discovery.discover import Discovery
from ela_probe.sites import Stage

Inputs = tuple[Any, ...]
Calls = Mapping[str, Sequence[Inputs]]  # by module name, the inputs of each call
Weights = dict[str, list[Tensor]]  # by stage name, a tensor a site


def largest_difference(
    model: nn.Module, discovery: Discovery, images: Tensor, by_hand: Callable[..., list[Tensor]]
) -> float:
    """Between the weights that the probe reads in a pass and those computed by hand.

    Args:
        by_hand: a function of this module, or one with the same arguments.
    """
    calls: dict[str, list[Inputs]] = {layer_of(m): [] for m in modules(discovery)}
    with recording_inputs(model, calls), torch.no_grad():
        read = weights_read(model, discovery, images)
        expected = {s.name: by_hand(model, s, calls) for s in discovery.stages}
    return max(
        float((a.double() - b.double()).abs().max())
        for name in expected
        for a, b in zip(read[name], expected[name], strict=True)
    )


def weights_read(model: nn.Module, discovery: Discovery, images: Tensor) -> Weights:
    """The weights that the probe reads in one pass."""
    recorder = WeightRecorder(discovery.adapter)
    replaced = dataclasses.replace(discovery, adapter=recorder)  # type: ignore[arg-type]
    with AttentionProbe(model, discovery=replaced), torch.no_grad():
        model(images)
    return recorder.read


class WeightRecorder:
    """An adapter that keeps the weights that it returns."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter, self.read = adapter, dict[str, list[Tensor]]()

    def weights(self, model: nn.Module, stage: Stage, captured: Any) -> list[Tensor]:
        self.read[stage.name] = self.adapter.weights(model, stage, captured)
        return self.read[stage.name]


@contextmanager
def recording_inputs(model: nn.Module, calls: dict[str, list[Inputs]]) -> Iterator[None]:
    """Append a copy of the inputs of every call of the named modules."""
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, inputs, name=name: calls[name].append(copied(inputs))
        )
        for name in calls
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def copied(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return tuple(copied(item) for item in value)
    return value.clone() if isinstance(value, Tensor) else value


def modules(discovery: Discovery) -> list[str]:
    return [site.module for stage in discovery.stages for site in stage.sites]


def layer_of(module: str) -> str:
    """The layer that a site's softmax or sigmoid is in; else the module itself."""
    parent, _, last = module.rpartition(".")
    return parent if last in ("softmax", "sigmoid") else module


def projected(convolution: nn.Module, descriptors: Tensor, heads: int) -> Tensor:
    """1-D convolution along the channels of [b, t, c], by head: [b, heads, t, c / heads]."""
    b, t, c = descriptors.shape
    kernel = convolution.get_parameter("weight")
    flat = F.conv1d(descriptors.reshape(b * t, 1, c), kernel, padding=kernel.shape[-1] // 2)
    return flat.view(b, t, heads, c // heads).transpose(1, 2)


def softmax_weights(model: nn.Module, stage: Stage, calls: Calls, *, raw: bool) -> list[Tensor]:
    """softmax(q_t · k_s / √d). raw: what is passed on are features, not keys (equation 4)."""
    result = []
    for site in stage.sites:
        layer: Any = model.get_submodule(layer_of(site.module))
        ((x, keys, _),) = calls[layer_of(site.module)]
        own = x.mean((2, 3))[:, None]
        query, key = projected(layer.Wq, own, layer.heads), projected(layer.Wk, own, layer.heads)
        if keys is not None and not layer.init_cell:
            b, t, _ = keys.shape
            earlier = (
                projected(layer.Wk, keys, layer.heads)
                if raw
                else keys.view(b, t, layer.heads, -1).transpose(1, 2)
            )
            key = torch.cat([earlier, key], dim=2)
        logits = (query * key).sum(-1) / math.sqrt(query.shape[-1])
        result.append((logits - logits.logsumexp(-1, keepdim=True)).exp())
    return result


def token_softmax_weights(model: nn.Module, stage: Stage, calls: Calls) -> list[Tensor]:
    """As softmax_weights, in the shape of DeiT's softmax: [b, heads, 1, t]."""
    return [weights[:, :, None] for weights in softmax_weights(model, stage, calls, raw=False)]


def unrolled_weights(model: nn.Module, stage: Stage, calls: Calls) -> list[Tensor]:
    """|g_s Π_{r=s+1..t} λ_r|, normalised: every product is formed anew."""
    gates, decays = [], []
    for site in stage.sites:
        layer: Any = model.get_submodule(layer_of(site.module))
        ((x,),) = calls[layer_of(site.module)]
        own = x.mean((2, 3))[:, None]
        query, key = projected(layer.Wq, own, layer.heads), projected(layer.Wk, own, layer.heads)
        logit = (query * key).sum((2, 3)) / math.sqrt(query.shape[-1])
        gates.append((1 / (1 + torch.exp(-logit))).repeat_interleave(query.shape[-1], 1).double())
        decays.append(model.get_parameter(f"{site.name}.lambda_t").flatten().double())
    result = []
    for t in range(len(gates)):
        parts = [
            (gates[s] * torch.stack([torch.ones_like(decays[0]), *decays[s + 1 : t + 1]]).prod(0))
            for s in range(t + 1)
        ]
        weights = torch.stack(parts, -1).abs()
        result.append(weights / weights.sum(-1, keepdim=True))
    return result


def key_norm_weights(model: nn.Module, stage: Stage, calls: Calls) -> list[Tensor]:
    """c_s / Σ c, c = exp(min(‖k‖ / d, 10)), a carried source first."""

    def strength(layer: Any, convolution: nn.Module, x: Tensor) -> Tensor:
        heads = layer.norm_d.shape[1]
        key = projected(convolution, x.mean((2, 3))[:, None], heads)[:, :, 0]
        return (key.square().sum(-1).sqrt() / layer.norm_d.view(1, heads)).clamp(max=10).exp()

    parts: list[Tensor] = []
    for site in stage.sites:
        layer: Any = model.get_submodule(site.module)
        x, info = (*calls[site.module][0], None)[:2]
        if not parts and info is not None:
            u = (info[0] / info[2]).flatten(1, 2)
            if u.shape[1] != x.shape[1]:
                u = layer.adjust_channel(u)
            parts.append(strength(layer, layer.u_Wk, layer.u_bn(u)))
        parts.append(strength(layer, layer.Wk, x))
    total = [torch.stack(parts[: site.sources], -1).double() for site in stage.sites]
    return [part / part.sum(-1, keepdim=True) for part in total]


def channel_weights(model: nn.Module, stage: Stage, calls: Calls) -> list[Tensor]:
    """The gates of the cell at each call, normalised over channels."""
    result = []
    for site in stage.sites:
        cell: Any = model.get_submodule(site.module)
        descriptor, (state, memory) = calls[site.module][site.call]
        for layer in range(cell.nlayers):
            summed = cell.w_ih[layer](descriptor) + cell.w_hh[layer](state[layer])
            enter, forget, content, leave = summed.chunk(4, dim=1)
            kept = forget.sigmoid() * memory[layer] + enter.sigmoid() * content.tanh()
            descriptor = leave.sigmoid() * kept.sigmoid()
        result.append(descriptor / descriptor.sum(-1, keepdim=True))
    return result

"""The adapter of Kimi K3's Attention Residuals as transformers writes them, found by structure.

A decoder's layers each have `pre_attn_residual` and `post_attn_residual`, and the decoder one more
in front of its head. Each retrieves, per token, from the sums of earlier blocks of layers and the
running sum: Σ_s softmax_s(q · n(x_s)) x_s, with n an RMS norm with a scale. The sums of blocks
are flattened, [samples · tokens, blocks, dim]. Source of the formula: arXiv 2603.15031.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ela_probe.adapters.handover import Alternatives, Handover, Passed
from ela_probe.adapters.registry import ReadOnlyAdapter, register_adapter
from ela_probe.adapters.replacements import SUM_CHANGES, SUM_WITHOUT, refuse_recur_and_drop
from ela_probe.models.stand_in import StandIn
from ela_probe.sites import Action, Site, Stage

BEFORE_ATTENTION, BEFORE_MLP = "pre_attn_residual", "post_attn_residual"  # of a layer


class KimiK3Adapter(ReadOnlyAdapter):
    """The whole depth is one stage; a site is a retrieval in front of a sublayer or the head.

    Its sources are the embedding, the sums of complete blocks and the running sum. The first
    layer's attention reads the embedding alone and is no site.
    """

    name = "kimi_k3"

    def matches(self, model: nn.Module) -> bool:
        return decoder_of(model) is not None

    def stages(self, model: nn.Module) -> list[Stage]:
        found = decoder_of(model)
        assert found is not None
        name, decoder = found
        prefix = f"{name}." if name else ""
        layers: Any = decoder.layers
        sites, blocks = [], 0
        for number, layer in enumerate(layers):
            title = f"{prefix}layers.{number}."
            if blocks:
                sites.append((title + BEFORE_ATTENTION, layer.pre_attn_residual, blocks + 1))
            blocks += layer.is_start_of_residual_block
            sites.append((title + BEFORE_MLP, layer.post_attn_residual, blocks + 1))
        sites += [(prefix + name, module, blocks + 1) for name, module in heads_of(decoder)]
        kept = [Site(name, name, sources) for name, part, sources in sites if is_retrieval(part)]
        return [Stage("depth", "softmax", tuple(kept))] if kept else []

    def reduced(
        self, model: nn.Module, site: str, call: int, captured: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """The weights [samples, tokens, sources], in place of the states they rate.

        captured: the running sum [samples, tokens, dim] and the sums of the blocks before it,
        [samples · tokens, blocks, dim].
        """
        running, blocks = captured[:2]
        retrieval = model.get_submodule(site)
        device = running.device.type
        mixed = torch.amp.is_autocast_available(device)
        with torch.autocast(device, enabled=False) if mixed else nullcontext():
            sources = torch.cat([blocks, running.reshape(-1, 1, running.shape[-1]).to(blocks)], 1)
            keys = retrieval.get_submodule("attn_residual_norm")(sources)
            query = retrieval.get_parameter("pseudo_queries.weight").to(keys)
            weights = torch.softmax(keys @ query[0], dim=-1)
        return (weights.unflatten(0, running.shape[:-1]),)

    def apply(self, model: nn.Module, actions: Mapping[str, Action]) -> None:
        sites = [site for stage in self.stages(model) for site in stage.sites]
        changed = [site for site in sites if actions.get(site.name, "keep") != "keep"]
        refuse_recur_and_drop(sites, actions, recur=SUM_CHANGES, drop=SUM_WITHOUT)
        for site in changed:
            parent, _, name = site.module.rpartition(".")
            training = model.get_submodule(site.module).training
            setattr(model.get_submodule(parent), name, ResidualSum().train(training))

    def handovers(self, model: nn.Module, stage: Stage) -> dict[str, Handover]:
        return {site.name: handover_of(site.module) for site in stage.sites}

    def stand_in(self, model: nn.Module, site: str, coefficients: Tensor) -> None:
        left = model.get_submodule(site)
        assert isinstance(left, ResidualSum)
        left.stand_in = StandIn(coefficients, terms=2, channel_axis=-1)


class ResidualSum(nn.Module):
    """Σ_s x_s: what is left of a retrieval under `skip`.

    That is the residual stream of a plain transformer. With `affine` a stand-in scales the share of
    the earlier blocks and that of the running block, by channel.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stand_in: nn.Module | None = None

    def forward(self, hidden_states: Tensor, block_residual: Tensor) -> Tensor:
        blocks = summed(hidden_states, block_residual)
        if self.stand_in is None:
            return hidden_states + blocks
        return self.stand_in(blocks, hidden_states)


def summed(running: Tensor, blocks: Tensor) -> Tensor:
    """The sum of all complete blocks in the shape of the running one, [samples, tokens, dim]."""
    return blocks.sum(dim=1).to(running.dtype).view_as(running)


def handover_of(name: str) -> Handover:
    """What a retrieval hands on to a sublayer or the head."""

    def tensors(passed: Mapping[str, Passed]) -> Sequence[Tensor]:
        running, blocks = passed[name].inputs[:2]
        return passed[name].outputs[0], summed(running, blocks), running

    return Handover(
        module=name,
        actions=("skip", "affine"),
        reads=(name,),
        tensors=tensors,
        alternatives=lambda y, blocks, running: Alternatives(y, (blocks, running)),
        channel_axis=-1,
        has_shift=False,
    )


def decoder_of(model: nn.Module) -> tuple[str, nn.Module] | None:
    """The decoder whose sublayers retrieve from block sums, with its name in the model."""
    return next(((name, m) for name, m in model.named_modules() if is_decoder(m)), None)


def is_decoder(module: nn.Module) -> bool:
    """Whether it has the layers and retrievals of a decoder, some of them perhaps pruned."""
    layers = getattr(module, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        return False
    parts: list[nn.Module | None] = [part for _, part in heads_of(module)]
    for layer in layers:
        if not isinstance(getattr(layer, "is_start_of_residual_block", None), bool):
            return False
        parts += [layer._modules.get(name) for name in (BEFORE_ATTENTION, BEFORE_MLP)]
    begins: Any = layers[0]
    return begins.is_start_of_residual_block and all(
        isinstance(part, ResidualSum) or is_retrieval(part) for part in parts
    )


def heads_of(decoder: nn.Module) -> list[tuple[str, nn.Module]]:
    """The retrieval in front of the head, whatever its name, also where it is pruned."""
    return [
        (name, part)
        for name, part in decoder.named_children()
        if isinstance(part, ResidualSum) or is_retrieval(part)
    ]


def is_retrieval(module: nn.Module | None) -> bool:
    """Whether it has one query for all tokens, and an RMS norm for what the query rates."""
    parts = {} if module is None else module._modules
    query, norm = parts.get("pseudo_queries"), parts.get("attn_residual_norm")
    scale = None if norm is None else norm._parameters.get("weight")
    return (
        isinstance(query, nn.Linear)
        and query.out_features == 1
        and query.bias is None
        and scale is not None
        and scale.shape == (query.in_features,)
    )


register_adapter(KimiK3Adapter())

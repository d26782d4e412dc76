"""The adapter of open implementations of (delta) Attention Residuals, found by structure.

That of open-attention-residuals and of delta-attention-residuals: a decoder's layers each have a
query `attn_res_proj` with a norm `attn_res_norm` for what it rates, and the same for `mlp_res`. A
function in the layer's forward stacks the sources, [sources, samples, tokens, dim], calls the norm
and mixes: Σ_s w(s) x_s with w = softmax_s(q · n(x_s) + b [s is the running state]). `attnres_mode`
says what the sources are (`ela_probe.adapters.open_attnres_layer`): the modes `block` and `full`
hand on that sum, `delta` and `delta_block` the running state plus that sum. Other modes, such as
those with a second query for values, are left to observation.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ela_probe.adapters.handover import Alternatives, Handover, Passed
from ela_probe.adapters.open_attnres_layer import (
    SUBLAYERS,
    ThinnedLayer,
    computes_the_same,
    is_embedded,
    is_layer,
    is_pair,
    mixing,
    plain_terms,
    scheme_of,
)
from ela_probe.adapters.registry import ReadOnlyAdapter, register_adapter
from ela_probe.adapters.replacements import refuse_recur_and_drop
from ela_probe.errors import PlanError
from ela_probe.models.stand_in import StandIn
from ela_probe.sites import Action, Site, Stage

FINAL = "final_res"  # of a decoder whose running state is reset
TAP = "tap"
GATED = ("sigmoid_scalar", "sigmoid_vector", "learnable_alpha")


class OpenAttnResAdapter(ReadOnlyAdapter):
    """The whole depth is one stage; a site is a query in front of a sublayer or the head.

    Without its retrieval a sublayer reads the residual stream of a plain transformer. That is the
    running state, or, where this is reset at each block, the sum of all sources.
    """

    name = "open_attnres"

    def matches(self, model: nn.Module) -> bool:
        return decoder_of(model) is not None

    def stages(self, model: nn.Module) -> list[Stage]:
        found = decoder_of(model)
        assert found is not None
        name, decoder = found
        prefix = f"{name}." if name else ""
        layers: Any = decoder.layers
        scheme, sites, listed = scheme_of(decoder), [], scheme_of(decoder).listed
        for number, layer in enumerate(layers):
            for sublayer in SUBLAYERS:
                sources = listed + scheme.reads_running + has_null(layer, sublayer)
                if sources and is_pair(layer, f"{sublayer}_res"):
                    title = f"{prefix}layers.{number}.{sublayer}_res"
                    sites.append(Site(title, f"{title}_norm", sources, "output"))
                listed += scheme.records(layer, sublayer, listed)
        if is_pair(decoder, FINAL):
            sites.append(Site(prefix + FINAL, f"{prefix}{FINAL}_norm", listed + 1, "output"))
        return [Stage("depth", "softmax", tuple(sites))] if sites else []

    def reduced(
        self, model: nn.Module, site: str, call: int, captured: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """The weights [samples, tokens, sources], in place of the keys.

        captured: the keys [sources, samples, tokens, dim], which a site's norm returns.
        """
        keys = captured[0].to(torch.promote_types(captured[0].dtype, torch.float32))
        device = keys.device.type
        mixed = torch.amp.is_autocast_available(device)
        with torch.autocast(device, enabled=False) if mixed else nullcontext():
            weights = mixing(model, site.removesuffix("_norm"), keys)
        return (weights.movedim(0, -1).contiguous(),)

    def weights(
        self, model: nn.Module, stage: Stage, captured: Sequence[tuple[Tensor, ...]]
    ) -> list[Tensor]:
        return [weights for (weights,) in captured]

    def apply(self, model: nn.Module, actions: Mapping[str, Action]) -> None:
        found = decoder_of(model)
        assert found is not None
        sites = [site for stage in self.stages(model) for site in stage.sites]
        changed = [site.name for site in sites if actions.get(site.name, "keep") != "keep"]
        refuse_recur_and_drop(
            sites,
            actions,
            recur="it has no recurrent form",
            drop="the layers record their sublayers' outputs, whatever they retrieve",
        )
        scheme = scheme_of(found[1])
        for name in changed:
            layer = model.get_submodule(name.rpartition(".")[0])
            if name.endswith(FINAL):
                raise PlanError(
                    f"{name} cannot be pruned: the forward of the whole decoder forms it; use keep"
                )
            if gate_of(layer):
                raise PlanError(
                    f"{name} cannot be pruned: a gate mixes it with the running state; use keep"
                )
            if not computes_the_same(layer, scheme):
                raise PlanError(
                    f"{name} cannot be pruned: in a trial its layer did not return what published "
                    f"layers of the mode {scheme.mode} do; use keep"
                )
        for name in changed:
            parent, _, title = name.rpartition(".")
            layer = model.get_submodule(parent)
            if not isinstance(layer, ThinnedLayer):
                layer = ThinnedLayer(layer, scheme).train(layer.training)
                model.set_submodule(parent, layer)
            layer.remove(title.removesuffix("_res"))

    def handovers(self, model: nn.Module, stage: Stage) -> dict[str, Handover]:
        """All but the retrieval in front of the head, and those that a gate mixes."""
        found = decoder_of(model)
        assert found is not None
        scheme = scheme_of(found[1])
        return {
            site.name: handover_of(model, site.name, scheme.terms)
            for site in stage.sites
            if not site.name.endswith(FINAL)
            and not gate_of(model.get_submodule(site.name.rpartition(".")[0]))
        }

    def stand_in(self, model: nn.Module, site: str, coefficients: Tensor) -> None:
        layer = model.get_submodule(site.rpartition(".")[0])
        assert isinstance(layer, ThinnedLayer)
        terms = scheme_of(decoder_of(model)[1]).terms  # type: ignore[index]
        title = f"{site.rpartition('.')[2]}_stand_in"
        layer.add_module(title, StandIn(coefficients, terms=terms, channel_axis=-1))


@dataclass(frozen=True)
class Tapped:
    """Opens a block in which what goes into a module also comes out of one, its submodule `tap`.

    What a site hands on is what the norm of its sublayer reads; no module returns it.

    Args:
        norm: the qualified name of that norm.
    """

    norm: str

    @contextmanager
    def __call__(self, model: nn.Module) -> Iterator[None]:
        norm = model.get_submodule(self.norm)
        if TAP in norm._modules:  # inside such a block already
            yield
            return
        own, run, tap = vars(norm).get("forward"), norm.forward, nn.Identity()
        norm.add_module(TAP, tap)
        norm.forward = lambda states: run(tap(states))
        try:
            yield
        finally:
            del norm._modules[TAP], norm.forward
            if own is not None:
                norm.forward = own


def handover_of(model: nn.Module, site: str, terms: int) -> Handover:
    """What a site hands on to the norm of its sublayer."""
    layer, _, title = site.rpartition(".")
    norm = f"{layer}.{SUBLAYERS[title.removesuffix('_res')]}"
    tap, keys = f"{norm}.{TAP}", f"{site}_norm"
    decoder = decoder_of(model)
    assert decoder is not None
    scheme = scheme_of(decoder[1])

    def tensors(passed: Mapping[str, Passed]) -> Sequence[Tensor]:
        y, sources = passed[tap].outputs[0], passed[keys].inputs[0]
        if scheme.adds:
            weights = mixing(model, site, passed[keys].outputs[0]).to(sources)
            return y, y - torch.einsum("sbt,sbtd->btd", weights, sources)
        return y, *plain_terms(scheme, list(sources[:-1]), sources[-1])

    return Handover(
        module=tap,
        actions=("skip", "affine"),
        reads=(keys, tap),
        tensors=tensors,
        alternatives=lambda y, *plain: Alternatives(y, plain),
        channel_axis=-1,
        has_shift=terms == 1,
        within=Tapped(norm),
    )


def decoder_of(model: nn.Module) -> tuple[str, nn.Module] | None:
    """The decoder whose layers have queries for what came before, with its name in the model."""
    return next(((name, m) for name, m in model.named_modules() if is_decoder(m)), None)


def is_decoder(module: nn.Module) -> bool:
    """Whether it has such layers, all of one mode that is known."""
    layers = getattr(module, "layers", None)
    return (
        isinstance(layers, nn.ModuleList)
        and len(layers) > 0
        and all(is_layer(layer) for layer in layers)
        and len({(layer.attnres_mode, is_embedded(layer)) for layer in layers}) == 1
    )


def gate_of(layer: nn.Module) -> bool:
    """Whether a gate mixes what is retrieved with the running state."""
    return getattr(layer, "gate_type", None) in GATED


def has_null(layer: nn.Module, sublayer: str) -> bool:
    """Whether a learned vector is one more source, the first."""
    return isinstance(getattr(layer, f"{sublayer}_null_source", None), Tensor)


register_adapter(OpenAttnResAdapter())

"""The layers of open implementations of (delta) Attention Residuals: what they record, and pruned.

A layer gets a list of sources and a running state, and returns both. It has two sublayers. There
are several ways to record, and `Scheme` tells which one a decoder has.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# of a layer: its sublayers, and the norm that reads what each of them retrieves
SUBLAYERS = {"attn": "input_layernorm", "mlp": "post_attention_layernorm"}
MODES = ("block", "full", "delta", "delta_block")
BY_POSITION = (
    "attention_mask",
    "position_ids",
    "past_key_values",
    "use_cache",
    "cache_position",
    "position_embeddings",
)


@dataclass(frozen=True)
class Scheme:
    """How a decoder records sources.

    Attributes:
        mode: `attnres_mode` of its layers.
        embedded: whether the list begins with the embedding, which the running state also begins
            with. So it does in the versions whose layers have a bias for the running state.
        resets: whether the running state is set to zero where it is recorded, so that the residual
            stream of a plain transformer is the sum of all sources. Then the decoder has one more
            retrieval in front of its head.
    """

    mode: str
    embedded: bool
    resets: bool

    @property
    def adds(self) -> bool:
        """Whether a sublayer reads the running state plus what is retrieved."""
        return self.mode.startswith("delta")

    @property
    def reads_running(self) -> bool:
        """Whether the running state is the last source."""
        return not self.adds

    @property
    def listed(self) -> int:
        """The length of the list in front of the first layer."""
        return int(self.embedded)

    @property
    def terms(self) -> int:
        """Into how many terms the residual stream is split for a stand-in."""
        return 2 if self.resets else 1

    def records(self, layer: nn.Module, sublayer: str, listed: int) -> int:
        """By how much the list grows between this sublayer's retrieval and the next one."""
        if self.mode == "full":
            return 1
        if self.mode == "delta":
            return 1 + (listed == 0)
        if self.mode == "block" and self.resets:
            return int(sublayer == "attn" and flag(layer, "is_new_block_start"))
        inside = self.mode == "delta_block" and not self.embedded
        return int(flag(layer, "is_block_boundary") and sublayer == ("attn" if inside else "mlp"))


def scheme_of(decoder: nn.Module) -> Scheme:
    """The scheme of a decoder, from its first layer and its retrieval in front of the head."""
    layers: Any = decoder.layers
    return Scheme(layers[0].attnres_mode, is_embedded(layers[0]), is_pair(decoder, "final_res"))


def is_embedded(layer: nn.Module) -> bool:
    """Whether the list of sources begins with the embedding."""
    if isinstance(layer, ThinnedLayer):
        return layer.scheme.embedded
    return bias_of(layer, "attn") is not None


def plain_terms(scheme: Scheme, listed: list[Tensor], running: Tensor) -> tuple[Tensor, ...]:
    """The terms of the residual stream of a plain transformer, each [samples, tokens, dim]."""
    if not scheme.resets:
        return (running,)
    blocks = listed[1:] if scheme.embedded else listed
    return (sum(blocks, torch.zeros_like(running)), running)


def mixing(model: nn.Module, site: str, keys: Tensor) -> Tensor:
    """The weights [sources, ...] of a site, from its keys [sources, ..., dim].

    site: its qualified name, such as `layers.0.attn_res`.
    """
    parent, _, title = site.rpartition(".")
    owner = model.get_submodule(parent)
    query = owner.get_parameter(f"{title}_proj.weight").view(-1)
    logits = torch.einsum("d,s...d->s...", query.to(keys), keys)
    bias = bias_of(owner, title.removesuffix("_res"))
    if bias is not None and not str(getattr(owner, "attnres_mode", "")).startswith("delta"):
        logits[-1] += bias.to(logits)
    return logits.softmax(dim=0)


class ThinnedLayer(nn.Module):
    """A layer that retrieves in front of fewer of its sublayers; it records as before.

    It has the submodules and parameters of the layer under the same names, but those of the
    retrievals that are removed. Without its retrieval a sublayer reads the residual stream, under
    `affine` through a stand-in for each of its terms.
    """

    def __init__(self, layer: nn.Module, scheme: Scheme) -> None:
        super().__init__()
        known = vars(self).keys()
        for name, value in vars(layer).items():  # what the decoder reads besides
            if name not in known:
                setattr(self, name, value)
        self._modules.update(layer._modules)
        self._parameters.update(layer._parameters)
        self.is_block_boundary = flag(layer, "is_block_boundary")
        self.is_new_block_start = flag(layer, "is_new_block_start")
        self.scheme = scheme

    def remove(self, sublayer: str) -> None:
        """Remove the query, the norm, the bias and the null source of one sublayer."""
        for name in (f"{sublayer}_res_proj", f"{sublayer}_res_norm"):
            del self._modules[name]
        self._parameters.pop(f"{sublayer}_null_source", None)
        self._parameters.pop(f"{sublayer}_res_bias", None)

    def forward(
        self, blocks: list[Tensor], partial_block: Tensor, *arguments: Any, **options: Any
    ) -> tuple[list[Tensor], Tensor]:
        """blocks: of [samples, tokens, dim] each, as partial_block. options: of the attention."""
        options = {**dict(zip(BY_POSITION, arguments, strict=False)), **options}
        entropies = options.pop("entropy_accum", None)
        listed, running = list(blocks), partial_block
        for sublayer, norm in SUBLAYERS.items():
            read = self._read(sublayer, listed, running, entropies)
            states = self.get_submodule(norm)(read)
            if sublayer == "attn":
                output = self.get_submodule("self_attn")(hidden_states=states, **options)[0]
            else:
                output = self.get_submodule("mlp")(states)
            running = self._record(sublayer, listed, running, output)
        return listed, running

    def _read(
        self, sublayer: str, listed: list[Tensor], running: Tensor, entropies: list[Tensor] | None
    ) -> Tensor:
        title = f"{sublayer}_res"
        if not is_pair(self, title):
            terms = plain_terms(self.scheme, listed, running)
            stand_in = self._modules.get(f"{title}_stand_in")
            return sum(terms[1:], terms[0]) if stand_in is None else stand_in(*terms)
        null = getattr(self, f"{sublayer}_null_source", None)
        sources = [*listed, running] if self.scheme.reads_running else list(listed)
        sources = sources if null is None else [null.expand_as(running), *sources]
        if not sources:
            return running
        values = torch.stack(sources)
        weights = mixing(self, title, self.get_submodule(f"{title}_norm")(values))
        if entropies is not None:
            entropies.append(-(weights * (weights + 1e-8).log()).sum(dim=0).mean())
        mixed = torch.einsum("sbt,sbtd->btd", weights, values)
        return running + mixed if self.scheme.adds else mixed

    def _record(
        self, sublayer: str, listed: list[Tensor], running: Tensor, output: Tensor
    ) -> Tensor:
        """Add to the list; returns the running state behind the sublayer."""
        scheme, after = self.scheme, running + output
        if not scheme.records(self, sublayer, len(listed)):
            return after
        if scheme.resets:
            listed.append(running)
            return output
        if scheme.mode == "delta":
            listed += [output] if listed else [running, output]
        elif scheme.mode == "full" or not scheme.adds:
            listed.append(after)
        elif not scheme.embedded:
            listed.append(running - listed[-1] if listed else running)
        return after  # else the decoder records


def computes_the_same(layer: nn.Module, scheme: Scheme) -> bool:
    """Whether a `ThinnedLayer` with nothing removed returns what the layer does.

    By a trial with plain functions in place of its sublayers, on random sources.
    """
    own = [copy.copy(layer), ThinnedLayer(layer, scheme)]
    scale = layer.get_parameter("input_layernorm.weight")
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(1, 2, len(scale), generator=generator).to(scale) for _ in range(3)]
    results = []
    for twin in own:
        twin._modules = {**twin._modules, "self_attn": Scaled(0.5, tuples=True), "mlp": Scaled(0.3)}
        try:
            with torch.no_grad():
                results.append(twin.forward(states[:2], states[2]))
        except Exception:
            return False
    (listed, running), (expected, after) = results
    return len(listed) == len(expected) and all(
        torch.allclose(a, b, rtol=1e-2, atol=1e-3)
        for a, b in zip([*listed, running], [*expected, after], strict=True)
    )


class Scaled(nn.Module):
    """A multiple of its input, in place of a sublayer; `tuples`: as attention returns it."""

    def __init__(self, factor: float, *, tuples: bool = False) -> None:
        super().__init__()
        self.factor, self.tuples = factor, tuples

    def forward(self, hidden_states: Tensor, **options: Any) -> Any:
        output = self.factor * hidden_states
        return (output, None) if self.tuples else output


def is_layer(module: nn.Module) -> bool:
    """Whether it has two sublayers with queries, some perhaps removed, and a known mode."""
    parts = module._modules
    if getattr(module, "attnres_mode", None) not in MODES:
        return False
    if not {"self_attn", "mlp", *SUBLAYERS.values()} <= parts.keys():
        return False
    return isinstance(module, ThinnedLayer) or all(
        is_pair(module, f"{sublayer}_res") for sublayer in SUBLAYERS
    )


def is_pair(owner: nn.Module, title: str) -> bool:
    """Whether it has a query and a norm with a scale for what the query rates."""
    query, norm = (owner._modules.get(f"{title}_{name}") for name in ("proj", "norm"))
    scale = None if norm is None else norm._parameters.get("weight")
    return (
        isinstance(query, nn.Linear)
        and query.out_features == 1
        and query.bias is None
        and scale is not None
        and scale.shape == (query.in_features,)
    )


def bias_of(owner: nn.Module, sublayer: str) -> nn.Parameter | None:
    """What is added to the logit of the running state, if anything."""
    return owner._parameters.get(f"{sublayer}_res_bias")


def flag(layer: nn.Module, name: str) -> bool:
    """A property of the layer."""
    return bool(getattr(layer, name, False))

"""The adapter of the block Attention Residuals of transformers' inkling2, found by structure.

A decoder's layers each have `attention_input` and `mlp_input`, the model has `final_input`. Each of
these retrieves, per token, from the sums of earlier blocks of layers and the sum of the running
block: Σ_s softmax_s(q · n(x_s) / √dim) n(x_s) with n(x) = x / rms(x). Some have several queries q.
In inkling2_loop some layers run several times in a pass; their retrievals can only be read.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ela_probe.adapters.handover import Alternatives, Handover, Passed
from ela_probe.adapters.registry import ReadOnlyAdapter, register_adapter
from ela_probe.adapters.replacements import SUM_CHANGES, SUM_WITHOUT, refuse_recur_and_drop
from ela_probe.errors import PlanError
from ela_probe.models.stand_in import StandIn
from ela_probe.sites import Action, Site, Stage

INPUTS = ("attention_input", "mlp_input")  # of a layer
MESSAGES = "message_input"  # of a model that runs layers several times


class InklingAdapter(ReadOnlyAdapter):
    """The whole depth is one stage; a site is a retrieval in front of a sublayer or the head.

    A site's sources are the embedding, the sums of complete blocks and the running sum. Sites with
    several queries have a head for each; where the numbers of heads in a stage differ, the weights
    are means over heads. Where layers run several times, the stage `depth` has their last run; the
    earlier runs and the messages between the runs are stages of their own.
    """

    name = "inkling"

    def matches(self, model: nn.Module) -> bool:
        return decoder_of(model) is not None

    def stages(self, model: nn.Module) -> list[Stage]:
        found = decoder_of(model)
        assert found is not None
        return [s for s in stages_of(*found) if s.sites]

    def reduced(
        self, model: nn.Module, site: str, call: int, captured: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """The weights [samples, tokens, queries, sources], in place of the states they rate.

        site: the name of the module. captured: its inputs, the block sums [samples, tokens, blocks,
        dim] and the running sum [samples, tokens, dim].
        """
        blocks, running = captured[:2]
        retrieval: Any = model.get_submodule(site)
        query = retrieval.query
        if query.dim() == 3:  # of each layer that runs again, one set of queries
            query = query[call % len(query)]
        device = running.device.type
        mixed = torch.amp.is_autocast_available(device)
        with torch.autocast(device, enabled=False) if mixed else nullcontext():
            keys = retrieval.norm(_precise(torch.cat([blocks, running.unsqueeze(-2)], dim=-2)))
            logits = torch.einsum("...sd,qd->...qs", keys, query.to(keys).view(-1, keys.shape[-1]))
            return (torch.softmax(logits * keys.shape[-1] ** -0.5, dim=-1),)

    def weights(
        self, model: nn.Module, stage: Stage, captured: Sequence[tuple[Tensor, ...]]
    ) -> list[Tensor]:
        """[samples, tokens, sources], or with heads in front of the sources where all have them."""
        found = [weights for (weights,) in captured]
        heads = {weights.shape[-2] for weights in found}
        if heads == {found[0].shape[-2]} and heads != {1}:
            return found
        return [weights.mean(dim=-2) for weights in found]

    def apply(self, model: nn.Module, actions: Mapping[str, Action]) -> None:
        sites = [site for stage in self.stages(model) for site in stage.sites]
        changed = [site for site in sites if actions.get(site.name, "keep") != "keep"]
        for site in changed:
            if site.calls > 1 or is_repeated(model, site):
                raise PlanError(
                    f"{site.name} cannot be pruned: its module retrieves {site.calls} times in a "
                    "pass, and takes part in every one; use keep"
                )
        refuse_recur_and_drop(sites, actions, recur=SUM_CHANGES, drop=SUM_WITHOUT)
        for site in changed:
            parent, _, name = site.module.rpartition(".")
            retrieval = model.get_submodule(site.module)
            replacement = PlainSum(retrieval.norm, heads=heads_of(retrieval))  # type: ignore[arg-type]
            setattr(model.get_submodule(parent), name, replacement.train(retrieval.training))

    def handovers(self, model: nn.Module, stage: Stage) -> dict[str, Handover]:
        """All sites whose module runs once in a pass."""
        return {
            site.name: handover_of(model.get_submodule(site.module), site.module)
            for site in stage.sites
            if site.calls == 1 and not is_repeated(model, site)
        }

    def stand_in(self, model: nn.Module, site: str, coefficients: Tensor) -> None:
        left = model.get_submodule(site)
        assert isinstance(left, PlainSum)
        left.stand_in = StandIn(coefficients, terms=2, channel_axis=-1)


class PlainSum(nn.Module):
    """The residual sum, normalised as a source is: what is left of a retrieval under `skip`.

        n(Σ_s x_s) = (Σ of the block sums + the running sum) / rms

    That is what a plain transformer without layer attention hands on. With `affine` a stand-in
    scales the share of the earlier blocks and that of the running block, by channel and query.

    Args:
        norm: of the retrieval, without parameters. heads: how many queries the retrieval had.
    """

    def __init__(self, norm: nn.Module, *, heads: int = 1) -> None:
        super().__init__()
        self.norm, self.heads = norm, heads
        self.stand_in: nn.Module | None = None

    def forward(self, block_states: Tensor, partial_block_states: Tensor) -> tuple[Tensor, ...]:
        terms = plain_terms(block_states.sum(dim=-2), partial_block_states, eps_of(self.norm))
        if self.stand_in is None:
            return (terms[0] + terms[1],) * self.heads
        terms = (_repeated(terms[0], self.heads), _repeated(terms[1], self.heads))
        return self.stand_in(*terms).chunk(self.heads, dim=-1)


def plain_terms(blocks: Tensor, running: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The shares of the complete blocks and of the running one in n(blocks + running).

    blocks, running: [samples, tokens, dim], the sum of all complete blocks and the running sum.
    """
    blocks, running = _precise(blocks), _precise(running)
    scale = torch.rsqrt((blocks + running).square().mean(dim=-1, keepdim=True) + eps)
    return blocks * scale, running * scale


def handover_of(retrieval: nn.Module, name: str) -> Handover:
    """What a retrieval hands on: the results of all its queries, side by side along channels."""
    heads, eps = heads_of(retrieval), eps_of(retrieval.norm)  # type: ignore[arg-type]

    def tensors(passed: Mapping[str, Passed]) -> Sequence[Tensor]:
        blocks, running = passed[name].inputs[:2]
        return torch.cat(list(passed[name].outputs[:heads]), dim=-1), blocks.sum(dim=-2), running

    def alternatives(y: Tensor, blocks: Tensor, running: Tensor) -> Alternatives:
        terms = plain_terms(blocks, running, eps)
        return Alternatives(y, tuple(_repeated(term, heads) for term in terms))

    return Handover(
        module=name,
        actions=("skip", "affine"),
        reads=(name,),
        tensors=tensors,
        alternatives=alternatives,
        channel_axis=-1,
        has_shift=False,
        outputs=heads,
    )


def decoder_of(model: nn.Module) -> tuple[str, nn.Module] | None:
    """The decoder whose sublayers retrieve from block sums, with its name in the model."""
    return next(((name, m) for name, m in model.named_modules() if is_decoder(m)), None)


def is_decoder(module: nn.Module) -> bool:
    """Whether it has the layers and retrievals of a decoder, some of them perhaps pruned."""
    layers = getattr(module, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        return False
    parts = [getattr(module, "final_input", None)]
    for layer in layers:
        if not isinstance(getattr(layer, "is_block_boundary", None), bool):
            return False
        parts += [getattr(layer, name, None) for name in INPUTS]
    known = [part for part in parts if part is not None]
    return bool(known) and all(isinstance(p, PlainSum) or is_retrieval(p) for p in known)


def is_retrieval(module: Any) -> bool:
    """Whether it has queries, and a norm without parameters for what they rate."""
    query, norm = getattr(module, "query", None), getattr(module, "norm", None)
    return (
        isinstance(module, nn.Module)
        and isinstance(query, Tensor)
        and isinstance(norm, nn.Module)
        and hasattr(norm, "eps")
        and not any(norm.parameters())
    )


def stages_of(name: str, decoder: nn.Module) -> list[Stage]:
    """The stages of a decoder in forward order; see `InklingAdapter`."""
    part: Any = decoder
    prefix = f"{name}." if name else ""
    site = partial(_sites, prefix)
    last, loop = len(part.layers), None
    if is_retrieval(getattr(part, MESSAGES, None)):
        loop = range(part.config.loop_layer_index_start, part.config.loop_layer_index_end)
    runs = 1 if loop is None else part.config.loop_num_passes
    loop = loop or range(0)
    boundaries = [layer.is_block_boundary for layer in part.layers]

    def layers(numbers: Sequence[int], blocks: int, run: int = 0, runs: int = 1) -> list[Site]:
        found = []
        for number in numbers:
            layer = part.layers[number]
            title = f"layers.{number}."
            found += site(layer.attention_input, title + INPUTS[0], blocks + 1, run, runs)
            blocks += boundaries[number]
            found += site(layer.mlp_input, title + INPUTS[1], blocks + 1, run, runs)
        return found

    before, inside = sum(boundaries[: loop.start]), sum(boundaries[loop.start : loop.stop])
    stages = []
    for run in range(runs - 1):
        earlier = tuple(layers(loop, before, run, runs))
        stages.append(Stage(f"run-{run}", "softmax", earlier))
        calls = range(run * len(loop), (run + 1) * len(loop))
        every = (runs - 1) * len(loop)
        messages = (site(part.message_input, MESSAGES, inside, call, every) for call in calls)
        stages.append(Stage(f"messages-{run}", "softmax", tuple(chain.from_iterable(messages))))
    depth = [
        *layers(range(loop.start), 0),
        *layers(loop, before, runs - 1, runs),
        *layers(range(loop.stop, last), before + inside),
        *site(part.final_input, "final_input", sum(boundaries) + 1, 0, 1),
    ]
    return [*stages, Stage("depth", "softmax", tuple(depth))]


def _sites(
    prefix: str, module: nn.Module | None, name: str, sources: int, call: int, calls: int
) -> list[Site]:
    """The site of a module, if it retrieves."""
    if not is_retrieval(module):
        return []
    title = prefix + name + (f"@{call}" if calls > 1 else "")
    return [Site(title, prefix + name, sources, call=call, calls=calls)]


def is_repeated(model: nn.Module, site: Site) -> bool:
    """Whether the site's queries are those of messages between runs."""
    query: Any = model.get_submodule(site.module).query
    return query.dim() == 3


def heads_of(retrieval: nn.Module) -> int:
    """How many queries it has."""
    query: Any = retrieval.query
    return int(query.numel() // query.shape[-1])


def eps_of(norm: nn.Module) -> float:
    """What the norm adds to the mean square."""
    return float(norm.eps)  # type: ignore[arg-type]


def _repeated(term: Tensor, heads: int) -> Tensor:
    """The same channels once for each head, [..., dim] to [..., heads x dim]."""
    return term if heads == 1 else term.repeat(*[1] * (term.dim() - 1), heads)


def _precise(states: Tensor) -> Tensor:
    """At least float32, as inkling2 computes here."""
    return states.to(torch.promote_types(states.dtype, torch.float32))


register_adapter(InklingAdapter())

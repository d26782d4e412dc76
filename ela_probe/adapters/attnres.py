"""The adapter of our transformers with Attention Residuals (ela_probe.models.attnres)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ela_probe.adapters.handover import Alternatives, Handover
from ela_probe.adapters.registry import ReadOnlyAdapter, register_adapter
from ela_probe.errors import PlanError
from ela_probe.models.attnres import Sublayer, Transformer
from ela_probe.models.depth_attention import Recurrence, Residual, Retrieval
from ela_probe.models.stand_in import StandIn
from ela_probe.sites import Action, Site, Stage


class AttnResAdapter(ReadOnlyAdapter):
    """The whole network is one stage; a site is the retrieval before a sublayer or the head."""

    name = "attnres"

    def matches(self, model: nn.Module) -> bool:
        return isinstance(model, Transformer)

    def stages(self, model: nn.Module) -> list[Stage]:
        """The sources of a site are the embedding and a block per `block_size` recorded outputs."""
        assert isinstance(model, Transformer)
        sites, recorded = [], -1
        for name, sublayer in model.sublayers():
            recorded += sublayer.retrieval.source
            if isinstance(sublayer.retrieval, Retrieval):
                sources = 1 - (-recorded // model.block_size)
                sites.append(Site(f"{name}.retrieval", f"{name}.retrieval.tap", sources))
        return [Stage("depth", "softmax", tuple(sites))] if sites else []

    def apply(self, model: nn.Module, actions: Mapping[str, Action]) -> None:
        assert isinstance(model, Transformer)
        sublayers = [(f"{name}.retrieval", sublayer) for name, sublayer in model.sublayers()]
        for position, (name, sublayer) in enumerate(sublayers):
            retrieval, action = sublayer.retrieval, actions.get(name, "keep")
            if action == "keep" or not isinstance(retrieval, Retrieval):
                continue
            if action == "recur":
                if not opens_block(model, position):
                    raise PlanError(
                        f"{name} cannot recur: its newest source is the sum of a block that the "
                        "site before has read; in block form only sites after the first sublayer "
                        "of a block can recur; use keep or skip"
                    )
                if not isinstance(retrieval.query, nn.Parameter):
                    raise PlanError(
                        f"{name} cannot recur: its query is computed from another tensor, as under "
                        "a mask; make it a parameter first (torch.nn.utils.prune.remove)"
                    )
                replacement: Recurrence | Residual = Recurrence(retrieval.query)
            else:
                replacement = Residual(source=action == "skip")
            sublayer.retrieval = replacement.train(retrieval.training)
        _check(model.block_size, sublayers)

    def handovers(self, model: nn.Module, stage: Stage) -> dict[str, Handover]:
        """All but the first site, which retrieves from the embedding alone."""
        assert isinstance(model, Transformer)
        sublayers = list(model.sublayers())
        names = {site.name for site in stage.sites}
        found = {}
        for position, (name, sublayer) in enumerate(sublayers[1:], start=1):
            if f"{name}.retrieval" not in names:
                continue
            before, earlier = sublayers[position - 1]
            recurs = (
                opens_block(model, position)
                and isinstance(earlier.retrieval, Retrieval)
                and sublayer.retrieval.source
                and earlier.retrieval.source
            )
            found[f"{name}.retrieval"] = depth_handover(name, before, recurs=recurs)
        return found

    def stand_in(self, model: nn.Module, site: str, coefficients: Tensor) -> None:
        left = model.get_submodule(site)
        assert isinstance(left, Residual)
        left.stand_in = StandIn(coefficients, terms=2, channel_axis=-1)


def opens_block(model: Transformer, position: int) -> bool:
    """Whether the output that arrives at this sublayer begins a new source."""
    return (position - 1) % model.block_size == 0


def depth_handover(name: str, before: str, *, recurs: bool) -> Handover:
    """The handover of a sublayer, from its name and that of the sublayer before it."""
    here, there = f"{name}.retrieval", f"{before}.retrieval"
    taps = (f"{here}.tap", f"{there}.tap") if recurs else ()

    def alternatives(y: Tensor, h: Tensor, v: Tensor, *weights: Tensor) -> Alternatives:
        """y, h, v: [batch, tokens, dim]; weights: of this site and the one before."""
        return Alternatives(y, (h, v), recurred(h, v, *weights) if weights else None)

    return Handover(
        module=here,
        actions=("skip", "affine", "recur") if recurs else ("skip", "affine"),
        reads=(here, there, before, *taps),
        tensors=lambda passed: [passed[read].outputs[0] for read in (here, there, before, *taps)],
        alternatives=alternatives,
        channel_axis=-1,
        has_shift=False,
    )


def recurred(h: Tensor, v: Tensor, weights: Tensor, before: Tensor) -> Tensor:
    """What `models.depth_attention.Recurrence` hands on, from weights instead of queries and keys.

    Its logit q · k_t − q · κ − H is log w_t(t) + KL(w_{t−1} ‖ w_t), the divergence over the sources
    that both read and not renormalised, since the logits of site t are log w_t plus a constant.
    """
    tiny = torch.finfo(weights.dtype).tiny
    log, log_before = weights.clamp_min(tiny).log(), before.clamp_min(tiny).log()
    logit = log[..., -1] + (before * (log_before - log[..., :-1])).sum(dim=-1)
    return torch.lerp(h, v, logit.sigmoid()[..., None])


def _check(block_size: int, sublayers: list[tuple[str, Sublayer]]) -> None:
    """Raises PlanError where the retrievals that remain do not fit together."""
    for position, (name, sublayer) in enumerate(sublayers):
        retrieval = sublayer.retrieval
        later = [s.retrieval for _, s in sublayers[position:]]
        if isinstance(retrieval, Recurrence) and isinstance(
            sublayers[position - 1][1].retrieval, Residual
        ):
            raise PlanError(
                f"{name} cannot recur: it continues the retrieval of the site before, and "
                f"{sublayers[position - 1][0]} has none; keep that one, or skip both"
            )
        if (
            block_size > 1
            and not retrieval.source
            and any(isinstance(r, Retrieval | Recurrence) for r in later)
        ):
            raise PlanError(
                f"{name} cannot be dropped: in block form the sources are sums over "
                f"{block_size} sublayers, and a sum without one of them is another source; "
                "use skip"
            )


register_adapter(AttnResAdapter())

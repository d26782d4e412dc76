"""The adapter of our transformers with Attention Residuals (ela_probe.models.attnres)."""

from collections.abc import Mapping

from torch import nn

from ela_probe.adapters.registry import ReadOnlyAdapter, register_adapter
from ela_probe.errors import PlanError
from ela_probe.models.attnres import Sublayer, Transformer
from ela_probe.models.depth_attention import Recurrence, Residual, Retrieval
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
                opens = (position - 1) % model.block_size == 0
                if not opens:
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

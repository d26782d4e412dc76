"""The adapter of DeiT with MRLA, as joyfang1106/MRLA published it, recognised by structure.

A block has token attention (`attn`) and layer attention (`mrla`), which retrieves after the MLP.
Only the latter has sites: the softmax of MRLA-B over layers per head, the gate and decay of MRLA-L.
A retrieval only normalises the class token; all patch tokens share one set of weights.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ela_probe.adapters.placement import AddedRetrievals
from ela_probe.adapters.registry import register_adapter
from ela_probe.adapters.replacements import NoRetrieval, NoSource, ProjectedSource, refuse_recur
from ela_probe.adapters.weights import heads_of_layer, unrolled
from ela_probe.sites import Action, Kind, Site, Stage


class DeiTAdapter(AddedRetrievals):
    """Sites are the blocks' `mrla`.

    MRLA-B starts a new list of sources every few blocks (`init_cell`). Each list is a stage, and
    the weights are the output of the softmax, [N, heads, 1, t]. In MRLA-L all blocks are one stage;
    the weights are unrolled from the gate [N, heads, 1, 1, 1] and `lambda_t` [channels]. As in the
    published ResNets o_{t-1} is the input of the block (here normalised too), so the weights
    describe the λ path alone.
    """

    name = "deit"
    channel_axis = -1

    def matches(self, model: nn.Module) -> bool:
        blocks = _blocks(model)
        kinds = {_kind(block) for block in blocks} - {None}
        return len(kinds) == 1 and all(hasattr(block, "attn") for block in blocks)

    def stages(self, model: nn.Module) -> list[Stage]:
        return [
            Stage(name, kind, sites)
            for name, kind, sites in (self._stage(*listed) for listed in _lists(model))
            if sites
        ]

    def weights(
        self, model: nn.Module, stage: Stage, captured: Sequence[tuple[Tensor, ...]]
    ) -> list[Tensor]:
        if stage.kind == "softmax":
            return [tensors[0] for tensors in captured]
        return unrolled(
            [
                (tensors[0].flatten(1), _part(model.get_submodule(site.name), "lambda_t"))
                for site, tensors in zip(stage.sites, captured, strict=True)
            ]
        )

    def heads(self, model: nn.Module, stage: Stage) -> int:
        return heads_of_layer(model, stage)

    def apply(self, model: nn.Module, actions: Mapping[str, Action]) -> None:
        refuse_recur(actions)
        for _, kind, blocks in _lists(model):
            for name, block in blocks:
                action = actions.get(name, "keep")
                if action == "keep":
                    continue
                layer = block.mrla
                if kind == "unrolled":
                    block.mrla = NoRetrieval()
                elif action == "skip" and not isinstance(layer, NoSource):
                    block.mrla = TokenSource(_part(layer, "normx"), _part(layer, "mrla"))
                else:
                    block.mrla = NoSource()

    @staticmethod
    def _stage(
        name: str, kind: Kind, blocks: Sequence[tuple[str, Any]]
    ) -> tuple[str, Kind, tuple[Site, ...]]:
        read = "mrla.softmax" if kind == "softmax" else "mrla.sigmoid"
        sites, sources = [], 0
        for site, block in blocks:
            sources += not isinstance(block.mrla, NoSource | NoRetrieval)
            if _kind(block) is not None:
                sites.append(Site(site, f"{site}.{read}", sources, reads="output"))
        return name, kind, tuple(sites)


class TokenSource(ProjectedSource):
    """Adds nothing and passes on the key and the value of the block's patch tokens."""

    def __init__(self, norm: nn.Module, layer: nn.Module) -> None:
        super().__init__(layer)
        self.normx = norm

    def forward(
        self, tokens: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """tokens: [N, 1 + h², C], class token first; keys: [N, t, C]; values: [N, t, C, h, h]."""
        patches = self.normx(tokens)[:, 1:].transpose(1, 2)
        side = round(patches.shape[-1] ** 0.5)
        return super().forward(patches.unflatten(-1, (side, side)), keys, values)


def _lists(model: nn.Module) -> Iterator[tuple[str, Kind, list[tuple[str, Any]]]]:
    """For each list of sources the stage's name, its kind, and the blocks by their site's name."""
    blocks = _blocks(model)
    kind = next((kind for kind in map(_kind, blocks) if kind is not None), None)
    if kind is None:
        return
    groups: list[list[tuple[str, Any]]] = [[]]
    for number, block in enumerate(blocks):
        starts = getattr(getattr(block.mrla, "mrla", None), "init_cell", False) is True
        if starts and groups[-1]:
            groups.append([])
        groups[-1].append((f"blocks.{number}.mrla", block))
    for number, group in enumerate(groups):
        yield "blocks" if kind == "unrolled" else f"blocks.group{number}", kind, group


def _blocks(model: nn.Module) -> list[Any]:
    """The blocks, if each has an `mrla` (or the replacement of a pruned one)."""
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList):
        return []
    listed = list(blocks)
    return listed if all(isinstance(getattr(b, "mrla", None), nn.Module) for b in listed) else []


def _kind(block: Any) -> Kind | None:
    """The kind of retrieval in a block; None where it was pruned, or is something else."""
    layer = getattr(block.mrla, "mrla", None)
    if not all(hasattr(layer, name) for name in ("Wq", "Wk", "Wv")):
        return None
    if isinstance(getattr(layer, "softmax", None), nn.Softmax) and hasattr(layer, "init_cell"):
        return "softmax"
    gated = isinstance(getattr(layer, "sigmoid", None), nn.Sigmoid)
    return "unrolled" if gated and hasattr(block.mrla, "lambda_t") else None


def _part(module: nn.Module, name: str) -> Any:
    return getattr(module, name)


register_adapter(DeiTAdapter())

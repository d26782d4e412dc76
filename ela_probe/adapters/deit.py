"""The adapter of DeiT with MRLA, as joyfang1106/MRLA published it, by structure.

A block has token attention (`attn`) and layer attention (`mrla`), which retrieves after the MLP.
Only the latter has sites: MRLA-B's softmax over layers per head, MRLA-L's gate and decay. The class
token passes a retrieval by (it is only normalised), and its patch tokens share one set of weights.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ela_probe.adapters.registry import register_adapter
from ela_probe.adapters.unrolled import unrolled
from ela_probe.errors import PlanError
from ela_probe.sites import Action, Kind, Site, Stage


class DeiTAdapter:
    """Sites are the blocks' `mrla`.

    MRLA-B starts a new list of sources every few blocks (`init_cell`), and each list is a stage;
    its weights [N, heads, 1, t] come out of the softmax. MRLA-L is one stage over all blocks; its
    weights are unrolled from the gate [N, heads, 1, 1, 1] and `lambda_t` [channels]. As in the
    ResNets' code o_{t-1} is the block's input, here normalised too, so that these describe the λ
    path alone.
    """

    name = "deit"

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

    def apply(self, model: nn.Module, actions: Mapping[str, Action]) -> None:
        for _, kind, blocks in _lists(model):
            for name, block in blocks:
                action = actions.get(name, "keep")
                if action == "recur":
                    raise PlanError(
                        f"{name}: this version cannot apply the action 'recur'; "
                        "use keep, skip or drop"
                    )
                if action == "keep":
                    continue
                layer = block.mrla
                if action == "skip" and kind == "softmax" and not isinstance(layer, NoRetrieval):
                    block.mrla = SourceOnly(_part(layer, "normx"), _part(layer, "mrla"))
                else:
                    block.mrla = NoRetrieval()

    @staticmethod
    def _stage(
        name: str, kind: Kind, blocks: Sequence[tuple[str, Any]]
    ) -> tuple[str, Kind, tuple[Site, ...]]:
        read = "mrla.softmax" if kind == "softmax" else "mrla.sigmoid"
        sites, sources = [], 0
        for site, block in blocks:
            sources += not isinstance(block.mrla, NoRetrieval)
            if _kind(block) is not None:
                sites.append(Site(site, f"{site}.{read}", sources, reads="output"))
        return name, kind, tuple(sites)


class SourceOnly(nn.Module):
    """In place of a skipped MRLA-B retrieval: the block's key and value join the sources."""

    def __init__(self, norm: nn.Module, layer: nn.Module) -> None:
        super().__init__()
        self.normx, self.Wk, self.Wv = norm, _part(layer, "Wk"), _part(layer, "Wv")

    def forward(
        self, tokens: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """tokens: [N, 1 + h², C], the class token first. keys: [N, t, C]. values: [N, t, C, h, h].

        Returns: 0 for what a retrieval would add, and keys and values of t + 1 sources.
        """
        patches = self.normx(tokens)[:, 1:].transpose(1, 2)
        side = round(patches.shape[-1] ** 0.5)
        image = patches.unflatten(-1, (side, side))
        key = self.Wk(F.adaptive_avg_pool2d(image, 1).flatten(1).unsqueeze(1))
        value = self.Wv(image).unsqueeze(1)
        return tokens.new_zeros(()), torch.cat((keys, key), 1), torch.cat((values, value), 1)


class NoRetrieval(nn.Module):
    """In place of a dropped retrieval: adds 0, and leaves the sources (MRLA-B's) as they are."""

    def forward(self, tokens: Tensor, *sources: Tensor) -> Any:
        nothing = tokens.new_zeros(())
        return (nothing, *sources) if len(sources) == 2 else nothing


def _lists(model: nn.Module) -> Iterator[tuple[str, Kind, list[tuple[str, Any]]]]:
    """Per list of sources its stage's name, its kind, and the blocks by the name of their site."""
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
    """The blocks, if every one has an `mrla`, ours in place of a pruned one included."""
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList):
        return []
    listed = list(blocks)
    return listed if all(isinstance(getattr(b, "mrla", None), nn.Module) for b in listed) else []


def _kind(block: Any) -> Kind | None:
    """Which retrieval a block holds; None where it was pruned, or is something else."""
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

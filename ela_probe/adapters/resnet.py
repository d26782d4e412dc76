"""The adapter of our CIFAR ResNets (ela_probe.models.resnet)."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ela_probe.adapters import register_adapter
from ela_probe.errors import PlanError
from ela_probe.models.attention import MRLABase, MRLALight
from ela_probe.models.resnet import Block, ResNet
from ela_probe.sites import Action, Site, Stage


class ResNetAdapter:
    """Sites are the blocks' retrievals; a skipped one leaves its key and value, if it had any."""

    name = "resnet"

    def matches(self, model: nn.Module) -> bool:
        return isinstance(model, ResNet)

    def stages(self, model: nn.Module) -> list[Stage]:
        stages = []
        for stage_name, blocks in self._blocks(model):
            sites, sources, kind = [], 0, None
            for name, block in blocks:
                retrieval = block.retrieval
                sources += retrieval is not None
                if isinstance(retrieval, MRLABase | MRLALight):
                    kind = retrieval.kind
                    sites.append(Site(name, f"{name}.tap", sources))
            if kind is not None:
                stages.append(Stage(stage_name, kind, tuple(sites)))
        return stages

    def weights(
        self, model: nn.Module, stage: Stage, captured: Sequence[tuple[Tensor, ...]]
    ) -> list[Tensor]:
        if stage.kind == "softmax":
            return [tensors[0] for tensors in captured]
        return unrolled([(gate, decay) for gate, decay in captured])

    def apply(self, model: nn.Module, actions: Mapping[str, Action]) -> None:
        for _, blocks in self._blocks(model):
            for name, block in blocks:
                action = actions.get(name, "keep")
                if action == "keep":
                    continue
                if action == "recur":
                    raise PlanError(
                        f"{name}: this version cannot apply the action 'recur'; "
                        "use keep, skip or drop"
                    )
                retrieval = block.retrieval
                if action == "skip" and isinstance(retrieval, MRLABase):
                    block.retrieval = retrieval.without_retrieval()
                else:
                    block.retrieval = None

    @staticmethod
    def _blocks(model: nn.Module) -> Iterator[tuple[str, list[tuple[str, Block]]]]:
        """Per stage its name and its blocks by the name of their retrieval."""
        for s, stage in enumerate(model.stages):  # type: ignore[arg-type]
            name = f"stages.{s}"
            yield name, [(f"{name}.{t}.retrieval", block) for t, block in enumerate(stage)]


def unrolled(steps: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Effective contributions of a gated recurrence o_t = g_t V_t + λ_t o_{t-1}.

    Source s contributes |g_s Π_{r=s+1..t} λ_r|; every channel is a distribution of its own.

    Args:
        steps: per site the gate [samples, heads] and the decay [channels, 1, 1].

    Returns: per site t a tensor [samples, channels, t], normalised over its last axis.
    """
    contributions: list[Tensor] = []
    weights = []
    for gate, decay in steps:
        decay = decay.detach().flatten().abs().double()
        by_channel = (
            gate.detach().abs().double().repeat_interleave(decay.numel() // gate.shape[1], dim=1)
        )
        contributions = [earlier * decay for earlier in contributions] + [by_channel]
        stacked = torch.stack(contributions, dim=-1)
        weights.append(stacked / stacked.sum(dim=-1, keepdim=True))
    return weights


register_adapter(ResNetAdapter())

"""Distributions from what hooks read: unrolled recurrences, normalised gates; their heads."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ela_probe.sites import Stage


def unrolled(steps: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Effective contributions of a gated recurrence o_t = g_t V_t + λ_t o_{t-1}.

    Source s contributes |g_s Π_{r=s+1..t} λ_r|; each channel has its own distribution.

    Args:
        steps: for each site the gate [samples, heads] and the decay [channels, 1, 1].

    Returns: for each site t a tensor [samples, channels, t], normalised over its last axis.
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


def normalised(gates: Tensor) -> Tensor:
    """Divide each row of non-negative gates, [samples, channels], by its sum."""
    gates = gates.double()
    return gates / gates.sum(dim=-1, keepdim=True)


def heads_of_layer(model: nn.Module, stage: Stage) -> int:
    """The `heads` of the layer in which a stage's weights are read; 1 where it has none.

    What is read is a part of the layer, such as its softmax.
    """
    layer = model.get_submodule(stage.sites[0].module.rpartition(".")[0])
    heads = getattr(layer, "heads", 1)
    return heads if isinstance(heads, int) and stage.kind != "channel" else 1

"""Distributions from what hooks read: unrolled recurrences, normalised gates."""

from collections.abc import Sequence

import torch
from torch import Tensor


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

"""Gated recurrences unrolled to the contribution of each source."""

from collections.abc import Sequence

import torch
from torch import Tensor


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

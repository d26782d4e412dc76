"""Models with layer attention written in ways that no adapter knows, beside token attention.

Each keeps in `by_hand` the weights of its last pass, recomputed from the scores without softmax.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def by_exponentials(scores: Tensor, axis: int) -> Tensor:
    """A softmax in float64 by numpy, which no function mode sees."""
    values = scores.detach().double().numpy()
    powers = np.exp(values - values.max(axis, keepdims=True))
    return torch.from_numpy(powers / powers.sum(axis, keepdims=True))


class Tokens(nn.Module):
    """Ordinary token attention, written by hand with F.softmax."""

    def __init__(self, width: int, heads: int, *, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2)
        if self.causal:
            scores = scores + torch.full((tokens, tokens), -1e9).triu(1)
        weights = F.softmax(scores, dim=-1)
        return (weights @ v).transpose(1, 2).reshape(batch, tokens, width)


class Block(nn.Module):
    """A functional softmax on axis 0 of a stack of sources, in the block's own forward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(width))
        self.tokens = Tokens(width, heads, causal=True)
        self.fused = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, sources: list[Tensor], by_hand: list[Tensor]) -> Tensor:
        stacked = torch.stack(sources)
        scores = stacked @ self.query  # [sources, batch, tokens]
        weights = F.softmax(scores, dim=0)
        by_hand.append(by_exponentials(scores, 0).permute(1, 2, 0))
        x = (weights[..., None] * stacked).sum(0)
        x = x + self.tokens(x)
        return x + self.fused(x, x, x)[0]


class OnAxisZero(nn.Module):
    def __init__(self, width: int, heads: int, depth: int, tokens: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.head = nn.Linear(width, 3)
        self.by_hand: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.by_hand = []
        sources = [x]
        for block in self.blocks:
            sources.append(block(sources, self.by_hand))
        return self.head(sources[-1].mean(1)).softmax(-1)


class Chained(nn.Module):
    """An einsum chain with Tensor.softmax, after a token softmax in the same forward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.router = nn.Linear(width, 3)

    def forward(self, keys: list[Tensor], x: Tensor, by_hand: list[Tensor]) -> Tensor:
        tokens = torch.einsum("bld,bmd->blm", x, x).softmax(-1)
        x = torch.einsum("blm,bmd->bld", tokens, x)
        experts = self.router(x).softmax(-1)
        query = self.query(x.mean(1)).unflatten(1, (self.heads, -1))
        keys.append(self.key(x.mean(1)).unflatten(1, (self.heads, -1)))
        scores = torch.einsum("bhd,tbhd->bth", query, torch.stack(keys))
        weights = scores.softmax(dim=1)
        by_hand.append(by_exponentials(scores, 1).transpose(1, 2))
        retrieved = torch.einsum("bth,tbhd->bhd", weights, torch.stack(keys)).flatten(1)
        return x + retrieved[:, None] * experts.amax(-1, keepdim=True)


class EinsumChain(nn.Module):
    def __init__(self, width: int, heads: int, depth: int, tokens: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Chained(width, heads) for _ in range(depth))
        self.by_hand: list[Tensor] = []

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.by_hand = []
        keys: list[Tensor] = []
        for layer in self.layers:
            x = layer(keys, x, self.by_hand)
        return {"features": x}


class Mixer(nn.Module):
    """One module with an nn.Softmax that all layers share; the first layer has nothing to mix."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1, bias=False)
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, sources: Tensor, by_hand: list[Tensor]) -> Tensor:
        scores = self.score(sources).squeeze(-1)  # [batch, tokens, sources]
        weights = self.softmax(scores)
        by_hand.append(by_exponentials(scores, -1))
        mixed = torch.einsum("bls,blsd->bld", weights, sources)
        weights.mul_(0)  # what is only detached would be gone now
        return mixed


class SharedInALoop(nn.Module):
    def __init__(self, width: int, heads: int, depth: int, tokens: int) -> None:
        super().__init__()
        self.mixer = Mixer(width)
        self.attention = Tokens(width, heads)
        self.fused = nn.MultiheadAttention(width, heads, batch_first=True)
        self.depth = depth
        self.by_hand: list[Tensor] = []

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        self.by_hand, sources = [], [x, 0.5 * x]
        for _ in range(self.depth):
            x = self.mixer(torch.stack(sources, dim=2), self.by_hand)
            x = x + self.attention(x) + self.fused(x, x, x)[0]
            sources.append(x)
        return x, sources

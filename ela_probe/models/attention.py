"""Layer attention as modules: MRLA-B and MRLA-L (Fang et al., ICLR 2023, arXiv 2302.03985).

A retrieval takes a block's output, gives its own key and value to the stage's sources and adds
what it retrieves. Its weights pass through a `Tap`, so that a hook can read them.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from ela_probe.errors import ModelError
from ela_probe.sites import Kind


class Tap(nn.Module):
    """An identity that layer-attention weights pass through: the place for a forward hook.

    `context` is what else a reader needs (the decay of a gated recurrence); it is not returned.
    """

    def forward(self, weights: Tensor, *context: Tensor) -> Tensor:
        return weights


@dataclass
class Sources:
    """What the layers of one stage have made available so far, in order.

    keys: [batch, 1, channels] each; values: [batch, channels, height, width] each. Every value is
    stored once; nothing is concatenated.
    """

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)


def weighted_sum(weights: Tensor, values: list[Tensor]) -> Tensor:
    """Σ_s w(s) V_s by head, over a list of sources.

    Args:
        weights: [batch, heads, sources].
        values: one [batch, channels, height, width] tensor a source; channels = heads x head_dim.

    Returns: [batch, channels, height, width].
    """
    head_dim = values[0].shape[1] // weights.shape[1]
    by_channel = weights.repeat_interleave(head_dim, dim=1)[..., None, None]
    total = values[0] * by_channel[:, :, 0]
    for source, value in enumerate(values[1:], start=1):
        total = torch.addcmul(total, value, by_channel[:, :, source])
    return total


class Source(nn.Module):
    """A layer's key and value: the pooled descriptor's 1-D and a depthwise 3 x 3 convolution.

    On its own it is what a skipped retrieval leaves: a source for later layers.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.key = descriptor_conv(channels)
        self.value = depthwise_conv(channels)

    def forward(self, x: Tensor, residual: Tensor, sources: Sources) -> Tensor:
        self.provide(x, describe(x), sources)
        return x

    def provide(self, x: Tensor, descriptor: Tensor, sources: Sources) -> None:
        sources.keys.append(self.key(descriptor))
        sources.values.append(self.value(x))


class MRLABase(Source):
    """MRLA-B: o_t = Σ_s softmax_s(q_t · k_s / √d) V_s over the stage's sources (eq. 6).

    The block's output becomes x + drop_path(relu(norm(o_t))).
    """

    kind: Kind = "softmax"

    def __init__(self, channels: int, *, head_dim: int = 16, drop_path: float = 0.0) -> None:
        super().__init__(channels)
        self.heads = number_of_heads(channels, head_dim)
        self.query = descriptor_conv(channels)
        self.tap = Tap()
        self.norm = nn.BatchNorm2d(channels)
        self.drop_path = stochastic_depth(drop_path)

    def forward(self, x: Tensor, residual: Tensor, sources: Sources) -> Tensor:
        descriptor = describe(x)
        self.provide(x, descriptor, sources)
        query = self.query(descriptor).view(x.shape[0], self.heads, -1)
        keys = torch.cat(sources.keys, dim=1).unflatten(2, (self.heads, -1))
        logits = torch.einsum("bhd,bshd->bhs", query, keys) / math.sqrt(query.shape[-1])
        weights = self.tap(logits.softmax(dim=-1))
        retrieved = weighted_sum(weights, sources.values)
        return x + self.drop_path(self.norm(retrieved).relu())

    def without_retrieval(self) -> Source:
        """The same key and value with no retrieval: what the action `skip` leaves."""
        source = Source(self.norm.num_features)
        source.key, source.value = self.key, self.value
        return source.train(self.training)


class MRLALight(nn.Module):
    """MRLA-L: o_t = sigmoid(q_t · k_t / √d) V_t + λ_t o_{t-1}, with o_{t-1} the block's input.

    That o_{t-1} is the block's (downsampled) input is the published code's choice. The block's
    output becomes x + drop_path(norm(o_t)). No layer keeps a list of sources.
    """

    kind: Kind = "unrolled"

    def __init__(self, channels: int, *, head_dim: int = 16, drop_path: float = 0.0) -> None:
        super().__init__()
        self.heads = number_of_heads(channels, head_dim)
        self.query = descriptor_conv(channels)
        self.key = descriptor_conv(channels)
        self.value = depthwise_conv(channels)
        self.decay = nn.Parameter(torch.randn(channels, 1, 1))
        self.tap = Tap()
        self.norm = nn.BatchNorm2d(channels)
        self.drop_path = stochastic_depth(drop_path)

    def forward(self, x: Tensor, residual: Tensor, sources: Sources) -> Tensor:
        descriptor = describe(x)
        query = self.query(descriptor).view(x.shape[0], self.heads, -1)
        key = self.key(descriptor).view_as(query)
        gate = ((query * key).sum(-1) / math.sqrt(query.shape[-1])).sigmoid()
        gate = self.tap(gate, self.decay)
        by_channel = gate.repeat_interleave(query.shape[-1], dim=1)[..., None, None]
        retrieved = torch.addcmul(self.decay * residual, self.value(x), by_channel)
        return x + self.drop_path(self.norm(retrieved))


def describe(x: Tensor) -> Tensor:
    """The pooled descriptor of feature maps: [batch, channels, h, w] to [batch, 1, channels]."""
    return x.mean(dim=(2, 3)).unsqueeze(1)


def descriptor_conv(channels: int) -> nn.Conv1d:
    """The 1-D convolution along channels of MRLA and ECA: its odd width grows with log2(C)."""
    width = int(abs((math.log2(channels) + 1) / 2))
    width += 1 - width % 2
    return nn.Conv1d(1, 1, width, padding=width // 2, bias=False)


def depthwise_conv(channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)


def stochastic_depth(probability: float) -> nn.Module:
    return StochasticDepth(probability, mode="row") if probability > 0 else nn.Identity()


def number_of_heads(channels: int, head_dim: int) -> int:
    """Raises ModelError when the channels don't divide into heads."""
    if head_dim < 1 or channels % head_dim:
        raise ModelError(
            f"head_dim={head_dim} does not divide {channels} channels; use a power of two up to 16"
        )
    return channels // head_dim

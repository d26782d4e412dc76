"""MRLA-B and MRLA-L (Fang et al., ICLR 2023, arXiv 2302.03985).

A retrieval takes the output of a block, adds its key and value to the sources of the stage, and
adds what it retrieves from them to the output.
"""

import math
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from ela_probe.errors import ModelError
from ela_probe.models.descriptor import descriptor_conv, project
from ela_probe.models.norm_relu_add import norm_relu_add
from ela_probe.models.stack import Rows, Stack, weighted_sum
from ela_probe.models.tap import Tap
from ela_probe.sites import Kind

AnySource = TypeVar("AnySource", bound="Source")


class Sources:
    """What the layers of one stage have made available so far, in order.

    Args:
        retrievals: the stage's modules, in order; they say what of it is read.

    Attributes:
        keys: [batch, heads, head_dim] each. values: [batch, channels, height, width] each.
        retrieved: the feature maps that the latest site has retrieved.
        newer: the values that have come after it, where a recurrence reads them.
    """

    def __init__(self, retrievals: Iterable[nn.Module | None]) -> None:
        count = keys = values = 0
        self._recurs = False
        for retrieval in retrievals:
            count += isinstance(retrieval, Source)
            if isinstance(retrieval, MRLABase):
                keys = count
                values = values if isinstance(retrieval, MRLARecurrence) else count
                self._recurs |= isinstance(retrieval, MRLARecurrence)
        self.keys, self.values = Stack(keys), Stack(values)
        self.retrieved: Tensor | None = None
        self.newer: list[Tensor] = []

    def add_key(self, key: Tensor) -> None:
        """The next source's key, [batch, heads, head_dim]."""
        self.keys.append(key, Rows(key.shape))

    def add_key_and_ask(self, key: Tensor, query: Tensor) -> Tensor:
        """The next key, then the logits [batch, heads, sources] of a query of its shape."""
        return self.keys.append_and_dot(key, query, Rows(key.shape))

    def add_value(self, value: Tensor, heads: int) -> None:
        """The next source's value, [batch, channels, height, width]."""
        self.values.append(value, self.rows_of(value, heads))
        if self._recurs:
            self.newer.append(value)

    def add_value_and_sum(self, value: Tensor, weights: Tensor) -> Tensor:
        """The next value, then the sum of all by weights [batch, heads, sources]."""
        return self.values.append_and_sum(value, weights, self.rows_of(value, weights.shape[1]))

    def rows_of(self, value: Tensor, heads: int) -> Rows:
        return self.values.rows or Rows.of_maps(value, heads)

    def retrieve(self, maps: Tensor) -> Tensor:
        """Note what a site has retrieved; returns it."""
        if self._recurs:
            self.retrieved = maps
            self.newer.clear()
        return maps


class Source(nn.Module):
    """The key and the value of a layer, without a retrieval.

    The key is a 1-D convolution of the pooled descriptor, the value a depthwise 3 x 3 convolution.
    It replaces a skipped retrieval, so that later layers can still retrieve from the layer.
    """

    def __init__(self, channels: int, *, head_dim: int = 16) -> None:
        super().__init__()
        self.heads = number_of_heads(channels, head_dim)
        self.key = descriptor_conv(channels)
        self.value = depthwise_conv(channels)

    def forward(self, x: Tensor, residual: Tensor, sources: Sources) -> Tensor:
        (key,) = self.projected(x, self.key)
        sources.add_key(key)
        sources.add_value(self.value(x), self.heads)
        return x

    def projected(self, x: Tensor, *convolutions: nn.Conv1d) -> list[Tensor]:
        """Convolutions of the pooled descriptor: [batch, heads, head_dim] each."""
        return [part.unflatten(1, (self.heads, -1)) for part in project(x, *convolutions)]


class MRLABase(Source):
    """MRLA-B: o_t = Σ_s softmax_s(q_t · k_s / √d) V_s over the sources of the stage (eq. 6).

    The output of the block becomes x + drop_path(relu(norm(o_t))).
    """

    kind: Kind = "softmax"

    def __init__(self, channels: int, *, head_dim: int = 16, drop_path: float = 0.0) -> None:
        super().__init__(channels, head_dim=head_dim)
        self.query = descriptor_conv(channels)
        self.tap = Tap()
        self.norm = nn.BatchNorm2d(channels)
        self.drop_path = stochastic_depth(drop_path)

    def forward(self, x: Tensor, residual: Tensor, sources: Sources) -> Tensor:
        key, query = self.projected(x, self.key, self.query)
        logits = sources.add_key_and_ask(key, query / math.sqrt(query.shape[-1]))
        weights = logits.softmax(dim=-1)
        retrieved = sources.retrieve(self.retrieve(self.value(x), weights, sources))
        if isinstance(self.drop_path, nn.Identity):
            return norm_relu_add(self.norm, retrieved, x)
        return x + self.drop_path(self.norm(retrieved).relu())

    def retrieve(self, value: Tensor, weights: Tensor, sources: Sources) -> Tensor:
        return sources.add_value_and_sum(value, self.tap(weights))

    def without_retrieval(self) -> Source:
        """The same key and value without a retrieval: the result of the action `skip`."""
        return self._as(Source)

    def as_recurrence(self) -> "MRLARecurrence":
        """The same parameters in the recurrent form: the result of the action `recur`."""
        return self._as(MRLARecurrence)

    def _as(self, form: type[AnySource]) -> AnySource:
        with torch.device("meta"):  # draws no random numbers; all parts are replaced
            other = form(self.norm.num_features, head_dim=self.norm.num_features // self.heads)
        for name, part in self.named_children():
            if name in other._modules:
                setattr(other, name, part)
        return other.train(self.training)


class MRLARecurrence(MRLABase):
    """o_t = (1 − m_t) o_i + Σ_{s>i} w_t(s) V_s with m_t = Σ_{s>i} w_t(s): the action `recur`.

    o_i is the latest retrieval before t, over the sources up to i. The weights w_t are those of
    MRLA-B, but the values up to i are not read again. Exact where t and i weight the sources of i
    in the same way (shape divergence 0).
    """

    def retrieve(self, value: Tensor, weights: Tensor, sources: Sources) -> Tensor:
        sources.add_value(value, self.heads)
        newer = weights[..., -len(sources.newer) :]
        shares = torch.cat([1 - newer.sum(dim=-1, keepdim=True), newer], dim=-1)
        assert sources.retrieved is not None  # the first site of a stage never recurs
        rows = sources.rows_of(value, self.heads)
        return weighted_sum(shares, [sources.retrieved, *sources.newer], rows)


class MRLALight(nn.Module):
    """MRLA-L: o_t = sigmoid(q_t · k_t / √d) V_t + λ_t o_{t-1}, with o_{t-1} the block's input.

    The published code takes the (downsampled) input of the block as o_{t-1}, and so does this
    module. The output of the block becomes x + drop_path(norm(o_t)). There is no list of sources.
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
        query, key = (
            part.unflatten(1, (self.heads, -1)) for part in project(x, self.query, self.key)
        )
        gate = ((query * key).sum(-1) / math.sqrt(query.shape[-1])).sigmoid()
        gate = self.tap(gate, self.decay)
        by_channel = gate.repeat_interleave(query.shape[-1], dim=1)[..., None, None]
        retrieved = torch.addcmul(self.decay * residual, self.value(x), by_channel)
        return x + self.drop_path(self.norm(retrieved))


def depthwise_conv(channels: int) -> nn.Conv2d:
    """A 3 x 3 convolution of each channel by itself: the value of MRLA."""
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)


def stochastic_depth(probability: float) -> nn.Module:
    """Drop path: in training a sample becomes zero with this probability."""
    return StochasticDepth(probability, mode="row") if probability > 0 else nn.Identity()


def number_of_heads(channels: int, head_dim: int) -> int:
    """channels / head_dim. Raises ModelError where it is no whole number."""
    if head_dim < 1 or channels % head_dim:
        raise ModelError(
            f"head_dim={head_dim} does not divide {channels} channels; use a power of two up to 16"
        )
    return channels // head_dim

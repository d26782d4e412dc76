"""MRLA-B and MRLA-L (Fang et al., ICLR 2023, arXiv 2302.03985).

A retrieval takes the output of a block, adds its key and value to the sources of the stage, and
adds what it retrieves from them to the output.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from ela_probe.errors import ModelError
from ela_probe.models.descriptor import descriptor_conv, project
from ela_probe.models.norm_relu_add import norm_relu_add
from ela_probe.models.rows import Rows
from ela_probe.models.stack import Stack
from ela_probe.models.tap import Tap
from ela_probe.models.weighted_sum import weighted_sum
from ela_probe.sites import Kind

AnySource = TypeVar("AnySource", bound="Source")


class Sources:
    """What of the sources of a stage its modules read.

    It is the first argument of the stage's state; `Retrieved` says what follows it.

    Args:
        retrievals: the stage's modules, in order.

    Attributes:
        keys, values: stacks without any source yet.
        recurs: whether a recurrence is among the modules.
    """

    def __init__(self, retrievals: Iterable[nn.Module | None]) -> None:
        keys = values = key_readers = value_readers = 0
        self.recurs = False
        for count, retrieval in enumerate(inside(retrievals), start=1):
            if isinstance(retrieval, MRLABase):
                recurs = isinstance(retrieval, MRLARecurrence)
                self.recurs |= recurs
                keys, key_readers = count, key_readers + 1
                if not recurs:
                    values, value_readers = count, value_readers + 1
        self.keys, self.values = Stack(keys, key_readers), Stack(values, value_readers)


def inside(retrievals: Iterable[nn.Module | None]) -> list["Source"]:
    """The sources among the modules of a stage, also inside wrappers."""
    found = []
    for retrieval in retrievals:
        if isinstance(retrieval, Source):
            found.append(retrieval)
        elif retrieval is not None and not isinstance(retrieval, MRLALight):
            found += [part for part in retrieval.modules() if isinstance(part, Source)][:1]
    return found


@dataclass(frozen=True)
class SoFar:
    """What the layers of one stage have made available so far, in order.

    Attributes:
        keys: [batch, heads, head_dim] each. values: [batch, channels, height, width] each.
        retrieved: the feature maps that the latest site has retrieved.
        newer: the values that have come after it. Both only where a recurrence reads them.
    """

    sources: Sources
    keys: Stack
    values: Stack
    retrieved: Tensor | None = None
    newer: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, sources: Sources, *state: Any) -> "SoFar":
        """From the arguments of a block: what `as_arguments` has returned, or `sources` alone."""
        if not state:
            return cls(sources, sources.keys, sources.values)
        keys, values, retrieved, *tensors = state
        middle = keys.width
        end = middle + values.width
        return cls(
            sources,
            keys.with_tensors(tuple(tensors[:middle])),
            values.with_tensors(tuple(tensors[middle:end])),
            retrieved,
            tuple(tensors[end:]),
        )

    def as_arguments(self) -> tuple[Any, ...]:
        """The arguments of the next block: every tensor one of its own, as checkpoints need it."""
        return (
            self.sources,
            self.keys.with_tensors(()),
            self.values.with_tensors(()),
            self.retrieved,
            *self.keys.tensors,
            *self.values.tensors,
            *self.newer,
        )

    def with_value(self, value: Tensor, heads: int) -> "SoFar":
        """With the next source's value, [batch, channels, height, width]."""
        values = self.values.append(value, self.rows_of(value, heads))
        newer = (*self.newer, value) if self.sources.recurs else ()
        return SoFar(self.sources, self.keys, values, self.retrieved, newer)

    def with_key(self, key: Tensor) -> "SoFar":
        """With the next source's key, [batch, heads, head_dim]."""
        keys = self.keys.append(key, Rows(key.shape))
        return SoFar(self.sources, keys, self.values, self.retrieved, self.newer)

    def with_keys(self, keys: Stack) -> "SoFar":
        return SoFar(self.sources, keys, self.values, self.retrieved, self.newer)

    def after(self, retrieved: Tensor, values: Stack) -> "SoFar":
        """After a site has retrieved these maps."""
        kept = retrieved if self.sources.recurs else None
        return SoFar(self.sources, self.keys, values, kept)

    def rows_of(self, value: Tensor, heads: int) -> Rows:
        return self.values.rows or Rows.of_maps(value, heads)


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

    def forward(self, x: Tensor, residual: Tensor, *state: Any) -> tuple[Any, ...]:
        (key,) = self.projected(x, self.key)
        so_far = SoFar.of(*state).with_key(key).with_value(self.value(x), self.heads)
        return x, *so_far.as_arguments()

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

    def forward(self, x: Tensor, residual: Tensor, *state: Any) -> tuple[Any, ...]:
        so_far = SoFar.of(*state)
        key, query = self.projected(x, self.key, self.query)
        query = query / math.sqrt(self.norm.num_features // self.heads)
        logits, keys = so_far.keys.append_and_dot(key, query, Rows(key.shape))
        weights = logits.softmax(dim=-1)
        retrieved, so_far = self.retrieve(self.value(x), weights, so_far.with_keys(keys))
        if isinstance(self.drop_path, nn.Identity):
            out = norm_relu_add(self.norm, retrieved, x)
        else:
            out = x + self.drop_path(self.norm(retrieved).relu())
        return out, *so_far.as_arguments()

    def retrieve(self, value: Tensor, weights: Tensor, so_far: SoFar) -> tuple[Tensor, SoFar]:
        rows = so_far.rows_of(value, self.heads)
        maps, values = so_far.values.append_and_sum(value, self.tap(weights), rows)
        return maps, so_far.after(maps, values)

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

    def retrieve(self, value: Tensor, weights: Tensor, so_far: SoFar) -> tuple[Tensor, SoFar]:
        so_far = so_far.with_value(value, self.heads)
        newer = weights[..., -len(so_far.newer) :]
        shares = torch.cat([1 - newer.sum(dim=-1, keepdim=True), newer], dim=-1)
        assert so_far.retrieved is not None  # the first site of a stage never recurs
        rows = so_far.rows_of(value, self.heads)
        maps = weighted_sum(shares, [so_far.retrieved, *so_far.newer], rows)
        return maps, so_far.after(maps, so_far.values)


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

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        head_dim = self.norm.num_features // self.heads
        query, key = (
            part.unflatten(1, (self.heads, -1)) for part in project(x, self.query, self.key)
        )
        gate = ((query * key).sum(-1) / math.sqrt(head_dim)).sigmoid()
        gate = self.tap(gate, self.decay)
        by_channel = gate.repeat_interleave(head_dim, dim=1)[..., None, None]
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

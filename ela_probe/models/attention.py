"""Layer attention as modules: MRLA-B and MRLA-L (Fang et al., ICLR 2023, arXiv 2302.03985).

A retrieval takes a block's output, gives its own key and value to the stage's sources and adds
what it retrieves. Its weights pass through a `Tap`, so that a hook can read them.
"""

import math
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torchvision.ops import StochasticDepth

from ela_probe.errors import ModelError
from ela_probe.models.norm_relu_add import norm_relu_add
from ela_probe.models.stack import Rows, Stack, weighted_sum
from ela_probe.sites import Kind

AnySource = TypeVar("AnySource", bound="Source")


class Tap(nn.Module):
    """An identity that layer-attention weights pass through: the place for a forward hook.

    `context` is what else a reader needs (the decay of a gated recurrence); it is not returned.
    """

    def forward(self, weights: Tensor, *context: Tensor) -> Tensor:
        return weights


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
    """A layer's key and value: the pooled descriptor's 1-D and a depthwise 3 x 3 convolution.

    On its own it is what a skipped retrieval leaves: a source for later layers.
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
        """Of the pooled descriptor, [batch, heads, head_dim] each."""
        return [part.unflatten(1, (self.heads, -1)) for part in project(x, *convolutions)]


class MRLABase(Source):
    """MRLA-B: o_t = Σ_s softmax_s(q_t · k_s / √d) V_s over the stage's sources (eq. 6).

    The block's output becomes x + drop_path(relu(norm(o_t))).
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
        """The same key and value with no retrieval: what the action `skip` leaves."""
        return self._as(Source)

    def as_recurrence(self) -> "MRLARecurrence":
        """The same parameters in the recurrent form: what the action `recur` leaves."""
        return self._as(MRLARecurrence)

    def _as(self, form: type[AnySource]) -> AnySource:
        with torch.device("meta"):  # no random numbers: all its parts are replaced
            other = form(self.norm.num_features, head_dim=self.norm.num_features // self.heads)
        for name, part in self.named_children():
            if name in other._modules:
                setattr(other, name, part)
        return other.train(self.training)


class MRLARecurrence(MRLABase):
    """What the action `recur` leaves: o_t = (1 − m_t) o_i + Σ_{s>i} w_t(s) V_s.

    o_i is the latest retrieval formed before, over the sources up to i; m_t = Σ_{s>i} w_t(s).
    The weights are MRLA-B's own; only the values are not read again. Exact where the weights of t
    and i are alike on the sources of i (shape divergence 0).
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
        query, key = (
            part.unflatten(1, (self.heads, -1)) for part in project(x, self.query, self.key)
        )
        gate = ((query * key).sum(-1) / math.sqrt(query.shape[-1])).sigmoid()
        gate = self.tap(gate, self.decay)
        by_channel = gate.repeat_interleave(query.shape[-1], dim=1)[..., None, None]
        retrieved = torch.addcmul(self.decay * residual, self.value(x), by_channel)
        return x + self.drop_path(self.norm(retrieved))


def describe(x: Tensor) -> Tensor:
    """The pooled descriptor of feature maps: [batch, channels, h, w] to [batch, 1, channels]."""
    # A sum, since its gradient is a view; in float32 at least, since it leaves float16's range.
    total = x.sum(dim=(2, 3), dtype=torch.promote_types(x.dtype, torch.float32))
    return (total / (x.shape[2] * x.shape[3])).to(x.dtype).unsqueeze(1)


def descriptor_conv(channels: int) -> nn.Conv1d:
    """The 1-D convolution along channels of MRLA and ECA: its odd width grows with log2(C)."""
    width = int(abs((math.log2(channels) + 1) / 2))
    width += 1 - width % 2
    return nn.Conv1d(1, 1, width, padding=width // 2, bias=False)


def project(x: Tensor, *convolutions: nn.Conv1d) -> tuple[Tensor, ...]:
    """Several `descriptor_conv` of the pooled descriptor of x, [batch, channels] each."""
    if torch.compiler.is_compiling():
        descriptor = describe(x)
        return tuple(convolution(descriptor).squeeze(1) for convolution in convolutions)
    taps = torch.cat([convolution.weight for convolution in convolutions]).squeeze(1)
    return _Project.apply(x, taps).unbind(0)  # type: ignore[no-any-return]


class _Project(torch.autograd.Function):
    """The convolutions as one matrix product over the descriptor's windows.

    A convolution with one channel is slow. Differentiated once, by hand; the gradient by x is a
    view.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor) -> Tensor:
        windows = windows_of(describe(x), taps.shape[1]).to(taps.dtype)
        ctx.save_for_backward(windows, taps)
        ctx.shape, ctx.dtype = x.shape, x.dtype
        return (taps @ windows.T).view(len(taps), x.shape[0], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        windows, taps = ctx.saved_tensors
        grad = grad.to(taps.dtype)  # autocast may have made it less
        by_taps = grad.reshape(len(taps), -1) @ windows
        turned = windows_of(grad.transpose(0, 1), taps.shape[1])
        by_descriptor = turned @ taps.flip(1).reshape(-1, 1)
        batch, channels, height, width = ctx.shape
        by_mean = (by_descriptor / (height * width)).view(batch, channels, 1, 1)
        return by_mean.to(ctx.dtype).expand(ctx.shape), by_taps


def windows_of(rows: Tensor, width: int) -> Tensor:
    """[batch, parts, channels] to [batch * channels, parts * width], zeros beyond the ends."""
    padded = F.pad(rows, (width // 2, width // 2)).unfold(2, width, 1)
    return padded.transpose(1, 2).reshape(-1, rows.shape[1] * width)


def depthwise_conv(channels: int) -> nn.Conv2d:
    """MRLA's value: a 3 x 3 convolution of each channel by itself."""
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)


def stochastic_depth(probability: float) -> nn.Module:
    """Drop path: in training, zero for whole samples with this probability."""
    return StochasticDepth(probability, mode="row") if probability > 0 else nn.Identity()


def number_of_heads(channels: int, head_dim: int) -> int:
    """Raises ModelError when the channels don't divide into heads."""
    if head_dim < 1 or channels % head_dim:
        raise ModelError(
            f"head_dim={head_dim} does not divide {channels} channels; use a power of two up to 16"
        )
    return channels // head_dim

"""Dynamic layer attention: DLA-B and DLA-L (Wang et al., IJCAI 2024, arXiv 2406.13392).

Retrievals as in MRLA. Before each, a cell that the stage shares and that has read the blocks so far
rescales the earlier keys and values (DLA-B) or the block's input (DLA-L), channel by channel.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ela_probe.models.cells import Cell, CellState, DynamicSharingUnit, Shared
from ela_probe.models.descriptor import describe, descriptor_conv
from ela_probe.models.mrla import MRLALight, depthwise_conv, number_of_heads, stochastic_depth
from ela_probe.models.stack import Rows, weighted_sum
from ela_probe.models.tap import Tap
from ela_probe.sites import Kind


@dataclass
class DynamicSources(CellState):
    """The sources of a stage, and the products of all refreshes of each.

    A refresh only rescales channels, so no value is rewritten: `scales` holds the product of its
    refreshes, and the mean of a rescaled value is its rescaled mean.

    Attributes:
        values: [batch, channels, height, width] each.
        keys, means, scales: [batch, sources, channels]; keys are the refreshed ones.
    """

    values: list[Tensor] = field(default_factory=list)
    keys: Tensor | None = None
    means: Tensor | None = None
    scales: Tensor | None = None

    def read(self, descriptor: Tensor) -> None:
        """Step the cell, then refresh the sources so far with the state that each would lead to."""
        if self.cell is None:
            return
        self.step(descriptor)
        if self.keys is None or self.means is None or self.scales is None:
            return
        count = self.keys.shape[1]
        refreshed = self.peek(torch.cat([self.keys, self.means * self.scales], dim=1))
        self.keys = self.keys * refreshed[:, :count]
        self.scales = self.scales * refreshed[:, count:]

    def provide(self, key: Tensor, value: Tensor) -> None:
        """A new source, [batch, 1, channels] and [batch, channels, height, width]."""
        mean = describe(value)
        self.values.append(value)
        self.keys = appended(self.keys, key)
        self.means = appended(self.means, mean)
        self.scales = appended(self.scales, torch.ones_like(mean))


class SharedSources(Shared):
    """What the blocks of a stage share in DLA-B: the cell."""

    def begin(self) -> DynamicSources:
        return DynamicSources(self.cell)


class DLASource(nn.Module):
    """A layer's key and value, and the refresh, without a retrieval: the result of `skip`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.key = descriptor_conv(channels)
        self.value = depthwise_conv(channels)

    def forward(self, x: Tensor, residual: Tensor, sources: DynamicSources) -> Tensor:
        self.refresh_and_provide(x, describe(x), sources)
        return x

    def refresh_and_provide(self, x: Tensor, descriptor: Tensor, sources: DynamicSources) -> None:
        sources.read(descriptor.squeeze(1))
        sources.provide(self.key(descriptor), self.value(x))


class DLABase(DLASource):
    """DLA-B: MRLA-B over refreshed keys and values.

    The output of the block becomes x + drop_path(relu(norm(o_t))), as in MRLA-B.
    """

    kind: Kind = "softmax"

    def __init__(self, channels: int, *, head_dim: int = 16, drop_path: float = 0.0) -> None:
        super().__init__(channels)
        self.heads = number_of_heads(channels, head_dim)
        self.query = descriptor_conv(channels)
        self.tap = Tap()
        self.norm = nn.BatchNorm2d(channels)
        self.drop_path = stochastic_depth(drop_path)

    def forward(self, x: Tensor, residual: Tensor, sources: DynamicSources) -> Tensor:
        descriptor = describe(x)
        self.refresh_and_provide(x, descriptor, sources)
        assert sources.keys is not None
        assert sources.scales is not None
        query = self.query(descriptor).view(x.shape[0], self.heads, -1)
        keys = sources.keys.unflatten(2, (self.heads, -1))
        logits = torch.einsum("bhd,bshd->bhs", query, keys) / math.sqrt(query.shape[-1])
        weights = self.tap(logits.softmax(dim=-1))
        by_channel = weights.repeat_interleave(query.shape[-1], dim=1)
        retrieved = weighted_sum(
            by_channel * sources.scales.transpose(1, 2),
            sources.values,
            Rows.of_maps(sources.values[0], x.shape[1]),
        )
        return x + self.drop_path(self.norm(retrieved).relu())

    def without_retrieval(self) -> DLASource:
        """The same key, value and refresh without a retrieval: the result of the action `skip`."""
        source = DLASource(self.norm.num_features)
        source.key, source.value = self.key, self.value
        return source.train(self.training)


class SharedRefresh(Shared):
    """What the blocks of a stage share in DLA-L: the cell, and a depthwise convolution."""

    def __init__(self, cell: Cell, channels: int) -> None:
        super().__init__(cell)
        self.excite = depthwise_conv(channels)

    def begin(self) -> "RefreshState":
        return RefreshState(self.cell, excite=self.excite)


@dataclass
class RefreshState(CellState):
    """The state of the cell, and the stage's convolution for refreshes."""

    excite: nn.Module = field(kw_only=True)

    def refreshed(self, residual: Tensor) -> Tensor:
        """residual * h(mean(residual)) + a convolution of it. [batch, channels, height, width]."""
        scale = self.peek(describe(residual)).squeeze(1)[..., None, None]
        return torch.addcmul(self.excite(residual), residual, scale)


class DLALight(MRLALight):
    """DLA-L: MRLA-L with o_{t-1} the block's input, refreshed."""

    def forward(self, x: Tensor, residual: Tensor, sources: RefreshState) -> Tensor:  # type: ignore[override]
        sources.step(x.mean(dim=(2, 3)))
        return super().forward(x, sources.refreshed(residual), sources)  # type: ignore[arg-type]


def dynamic_sources(channels: int, *, reduction: int = 4) -> SharedSources:
    """The sources of a DLA-B stage, which a cell refreshes."""
    return SharedSources(DynamicSharingUnit(channels, reduction=reduction))


def dynamic_refresh(channels: int, *, reduction: int = 4) -> SharedRefresh:
    """The refresh of a DLA-L stage, by a cell."""
    return SharedRefresh(DynamicSharingUnit(channels, reduction=reduction), channels)


def appended(sources: Tensor | None, new: Tensor) -> Tensor:
    """The sources [batch, sources, ...] with one more at the end."""
    return new if sources is None else torch.cat([sources, new], dim=1)

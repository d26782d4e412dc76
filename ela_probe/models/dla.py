"""Dynamic layer attention: DLA-B and DLA-L (Wang et al., IJCAI 2024, arXiv 2406.13392).

Retrievals as in MRLA. Before each, a cell that the stage shares and that has read the blocks so far
rescales the earlier keys and values (DLA-B) or the block's input (DLA-L), channel by channel.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ela_probe.models.cells import Cell, DynamicSharingUnit, Shared
from ela_probe.models.descriptor import describe, descriptor_conv
from ela_probe.models.mrla import MRLALight, depthwise_conv, number_of_heads, stochastic_depth
from ela_probe.models.rows import Rows
from ela_probe.models.tap import Tap
from ela_probe.models.weighted_sum import weighted_sum
from ela_probe.sites import Kind


class SharedSources(Shared):
    """What the blocks of a stage share in DLA-B: the cell, which refreshes the sources."""

    def read(self, descriptor: Tensor, sources: "DynamicSources") -> "DynamicSources":
        """Step the cell, then refresh the sources so far with the state each would lead to.

        descriptor: of a block, [batch, channels].
        """
        hidden, memory, keys, means, scales, *values = sources
        if self.cell is None:
            return sources
        hidden, memory = self.step(descriptor, hidden, memory)
        if keys is not None and means is not None and scales is not None:
            count = len(values)
            refreshed = self.peek(torch.cat([keys, means * scales], dim=1), hidden, memory)
            keys, scales = keys * refreshed[:, :count], scales * refreshed[:, count:]
        return hidden, memory, keys, means, scales, *values


# The sources of a stage, and the products of all refreshes of each: the cell's hidden state and
# memory; keys, means and scales, [batch, sources, channels]; and the values, [batch, channels,
# height, width] each. A refresh only rescales channels, so no value is rewritten: `scales` holds
# the product of its refreshes, and the mean of a rescaled value is its rescaled mean.
DynamicSources = tuple[Tensor | None, ...]
NO_SOURCES: DynamicSources = (None,) * 5


class DLASource(nn.Module):
    """A layer's key and value, and the refresh, without a retrieval: the result of `skip`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.key = descriptor_conv(channels)
        self.value = depthwise_conv(channels)

    def forward(
        self, x: Tensor, residual: Tensor, shared: SharedSources, *sources: Tensor | None
    ) -> tuple[Any, ...]:
        return x, shared, *self.with_source(x, describe(x), shared, sources or NO_SOURCES)

    def with_source(
        self, x: Tensor, descriptor: Tensor, shared: SharedSources, sources: DynamicSources
    ) -> DynamicSources:
        """The sources after a refresh, with this layer's; descriptor [batch, 1, channels]."""
        hidden, memory, keys, means, scales, *values = shared.read(descriptor.squeeze(1), sources)
        value = self.value(x)
        mean = describe(value)
        return (
            hidden,
            memory,
            appended(keys, self.key(descriptor)),
            appended(means, mean),
            appended(scales, torch.ones_like(mean)),
            *values,
            value,
        )


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

    def forward(
        self, x: Tensor, residual: Tensor, shared: SharedSources, *sources: Tensor | None
    ) -> tuple[Any, ...]:
        descriptor = describe(x)
        sources = self.with_source(x, descriptor, shared, sources or NO_SOURCES)
        _, _, keys, _, scales, *values = sources
        assert keys is not None
        assert scales is not None
        channels = self.norm.num_features
        head_dim = channels // self.heads
        query = self.query(descriptor).squeeze(1).unflatten(1, (self.heads, -1))
        keys = keys.unflatten(2, (self.heads, -1))
        logits = torch.einsum("bhd,bshd->bhs", query, keys) / math.sqrt(head_dim)
        weights = self.tap(logits.softmax(dim=-1))
        by_channel = weights.repeat_interleave(head_dim, dim=1)
        maps = [value for value in values if value is not None]
        rows = Rows.of_maps(maps[0], channels)
        retrieved = weighted_sum(by_channel * scales.transpose(1, 2), maps, rows)
        return x + self.drop_path(self.norm(retrieved).relu()), shared, *sources

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

    def refreshed(self, residual: Tensor, hidden: Tensor, memory: Tensor) -> Tensor:
        """residual * h(mean(residual)) + a convolution of it. [batch, channels, height, width]."""
        scale = self.peek(describe(residual), hidden, memory).squeeze(1)[..., None, None]
        return torch.addcmul(self.excite(residual), residual, scale)


class DLALight(MRLALight):
    """DLA-L: MRLA-L with o_{t-1} the block's input, refreshed."""

    def forward(  # type: ignore[override]
        self, x: Tensor, residual: Tensor, shared: SharedRefresh, *state: Tensor
    ) -> tuple[Any, ...]:
        hidden, memory = shared.step(x.mean(dim=(2, 3)), *state)
        refreshed = shared.refreshed(residual, hidden, memory)
        return super().forward(x, refreshed), shared, hidden, memory


def dynamic_sources(channels: int, *, reduction: int = 4) -> SharedSources:
    """The sources of a DLA-B stage, which a cell refreshes."""
    return SharedSources(DynamicSharingUnit(channels, reduction=reduction))


def dynamic_refresh(channels: int, *, reduction: int = 4) -> SharedRefresh:
    """The refresh of a DLA-L stage, by a cell."""
    return SharedRefresh(DynamicSharingUnit(channels, reduction=reduction), channels)


def appended(sources: Tensor | None, new: Tensor) -> Tensor:
    """The sources [batch, sources, ...] with one more at the end."""
    return new if sources is None else torch.cat([sources, new], dim=1)

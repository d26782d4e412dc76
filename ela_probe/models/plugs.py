"""The attention modules that plug into a ResNet, by name and with their own arguments."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from pydantic import Field, validate_call
from torch import nn

from ela_probe.models.attention import MRLABase, MRLALight
from ela_probe.models.cells import DIACell, Shared
from ela_probe.models.channel_attention import EfficientChannelAttention, SqueezeExcitation
from ela_probe.models.dia import DIA
from ela_probe.models.dla import DLABase, DLALight, dynamic_refresh, dynamic_sources
from ela_probe.models.rla import Aggregation
from ela_probe.models.spatial_attention import CBAM

Count = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
OfChannels = Callable[[int], nn.Module]


@dataclass(frozen=True)
class Attention:
    """Where attention goes in a ResNet. Each part is built for a number of channels, or None.

    body: behind a block's last norm. gate: on what a block adds to its shortcut. retrieval: behind
    a block. shared: one a stage. hidden: channels of RLA's hidden map.
    """

    body: OfChannels | None = None
    gate: OfChannels | None = None
    retrieval: OfChannels | None = None
    shared: OfChannels | None = None
    hidden: int = 0


@validate_call
def plain() -> Attention:
    """None at all."""
    return Attention()


@validate_call
def se(*, reduction: Count = 16) -> Attention:
    """Squeeze and excitation; `reduction` divides the channels between its two layers."""
    return Attention(body=partial(SqueezeExcitation, reduction=reduction))


@validate_call
def eca() -> Attention:
    """Efficient channel attention."""
    return Attention(body=EfficientChannelAttention)


@validate_call
def cbam(*, reduction: Count = 16) -> Attention:
    """CBAM; `reduction` as of SE."""
    return Attention(body=partial(CBAM, reduction=reduction))


@validate_call
def dia(*, reduction: Count = 4) -> Attention:
    """DIA; `reduction` divides the channels inside the cell's layers."""
    return Attention(
        gate=DIA,
        shared=lambda channels: Shared(DIACell(channels, reduction=reduction)),
    )


@validate_call
def rla(*, hidden: Count = 12) -> Attention:
    """RLA_g; `hidden` channels of the map that runs along the blocks."""
    return Attention(shared=partial(Aggregation, hidden=hidden), hidden=hidden)


@validate_call
def mrla_b(*, head_dim: Count = 16, drop_path: Probability = 0.0) -> Attention:
    """MRLA-B; `head_dim` channels a head, a retrieval dropped with probability `drop_path`."""
    return Attention(retrieval=partial(MRLABase, head_dim=head_dim, drop_path=drop_path))


@validate_call
def mrla_l(*, head_dim: Count = 16, drop_path: Probability = 0.0) -> Attention:
    """MRLA-L; arguments as of MRLA-B."""
    return Attention(retrieval=partial(MRLALight, head_dim=head_dim, drop_path=drop_path))


@validate_call
def dla_b(*, head_dim: Count = 16, reduction: Count = 4, drop_path: Probability = 0.0) -> Attention:
    """DLA-B; arguments as of MRLA-B and, for its cell, of DIA."""
    return Attention(
        retrieval=partial(DLABase, head_dim=head_dim, drop_path=drop_path),
        shared=partial(dynamic_sources, reduction=reduction),
    )


@validate_call
def dla_l(*, head_dim: Count = 16, reduction: Count = 4, drop_path: Probability = 0.0) -> Attention:
    """DLA-L; arguments as of DLA-B."""
    return Attention(
        retrieval=partial(DLALight, head_dim=head_dim, drop_path=drop_path),
        shared=partial(dynamic_refresh, reduction=reduction),
    )

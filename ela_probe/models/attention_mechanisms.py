"""The attention mechanisms of our ResNets, by name, with their arguments."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from pydantic import Field, validate_call
from torch import nn

from ela_probe.models.cells import DIACell, Shared
from ela_probe.models.channel_attention import EfficientChannelAttention, SqueezeExcitation
from ela_probe.models.dia import DIA
from ela_probe.models.dla import DLABase, DLALight, dynamic_refresh, dynamic_sources
from ela_probe.models.mrla import MRLABase, MRLALight
from ela_probe.models.rla import Aggregation
from ela_probe.models.spatial_attention import CBAM

Count = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
BuildForChannels = Callable[[int], nn.Module]


@dataclass(frozen=True)
class AttentionMechanism:
    """The modules of an attention mechanism and where they sit in a ResNet.

    Each is a function of the number of channels that builds the module, or None.

    Attributes:
        body: after the last norm of a block's body.
        gate: multiplies the output of a block's body before the shortcut is added.
        retrieval: after a block.
        shared: one module for all blocks of a stage.
        hidden: the channels of RLA's hidden map; 0 without one.
    """

    body: BuildForChannels | None = None
    gate: BuildForChannels | None = None
    retrieval: BuildForChannels | None = None
    shared: BuildForChannels | None = None
    hidden: int = 0


@validate_call
def plain() -> AttentionMechanism:
    """No attention."""
    return AttentionMechanism()


@validate_call
def se(*, reduction: Count = 16) -> AttentionMechanism:
    """Squeeze and excitation; `reduction` divides the channels between its two layers."""
    return AttentionMechanism(body=partial(SqueezeExcitation, reduction=reduction))


@validate_call
def eca() -> AttentionMechanism:
    """Efficient channel attention."""
    return AttentionMechanism(body=EfficientChannelAttention)


@validate_call
def cbam(*, reduction: Count = 16) -> AttentionMechanism:
    """CBAM; `reduction` as in SE."""
    return AttentionMechanism(body=partial(CBAM, reduction=reduction))


@validate_call
def dia(*, reduction: Count = 4) -> AttentionMechanism:
    """DIA; `reduction` divides the channels between the two layers of each gate of the cell."""
    return AttentionMechanism(
        gate=DIA,
        shared=lambda channels: Shared(DIACell(channels, reduction=reduction)),
    )


@validate_call
def rla(*, hidden: Count = 12) -> AttentionMechanism:
    """RLA_g; `hidden` is the number of channels of the map that runs along the blocks."""
    return AttentionMechanism(shared=partial(Aggregation, hidden=hidden), hidden=hidden)


@validate_call
def mrla_b(*, head_dim: Count = 16, drop_path: Probability = 0.0) -> AttentionMechanism:
    """MRLA-B; `head_dim` channels per head, `drop_path` the probability to drop a retrieval."""
    return AttentionMechanism(retrieval=partial(MRLABase, head_dim=head_dim, drop_path=drop_path))


@validate_call
def mrla_l(*, head_dim: Count = 16, drop_path: Probability = 0.0) -> AttentionMechanism:
    """MRLA-L; arguments as in MRLA-B."""
    return AttentionMechanism(retrieval=partial(MRLALight, head_dim=head_dim, drop_path=drop_path))


@validate_call
def dla_b(
    *, head_dim: Count = 16, reduction: Count = 4, drop_path: Probability = 0.0
) -> AttentionMechanism:
    """DLA-B; arguments as in MRLA-B and, for its cell, as in DIA."""
    return AttentionMechanism(
        retrieval=partial(DLABase, head_dim=head_dim, drop_path=drop_path),
        shared=partial(dynamic_sources, reduction=reduction),
    )


@validate_call
def dla_l(
    *, head_dim: Count = 16, reduction: Count = 4, drop_path: Probability = 0.0
) -> AttentionMechanism:
    """DLA-L; arguments as in DLA-B."""
    return AttentionMechanism(
        retrieval=partial(DLALight, head_dim=head_dim, drop_path=drop_path),
        shared=partial(dynamic_refresh, reduction=reduction),
    )


MECHANISMS: dict[str, Callable[..., AttentionMechanism]] = {
    "plain": plain,
    "se": se,
    "eca": eca,
    "cbam": cbam,
    "dia": dia,
    "rla_g": rla,
    "dla_b": dla_b,
    "dla_l": dla_l,
    "mrla_b": mrla_b,
    "mrla_l": mrla_l,
}

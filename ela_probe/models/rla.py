"""Recurrent layer aggregation: RLA_g (Zhao et al., NeurIPS 2021, arXiv 2110.11852).

A hidden map h of a few channels runs along the blocks, through all stages. A block reads it with
its input; convolutions that the stage shares update it. Features and h are one tensor with h
in the last channels. The arithmetic is that of `resnet_rla` in fangyanwen1106/RLANet.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ela_probe.models.blocks import Block


class RLABlock(Block):
    """x' = relu(body(x, h) + shortcut(x)), h' = recurrent(tanh(norm(pool(h) + project(x')))).

    The stage shares `project` and `recurrent`; each block has its own norm. h reads the output of
    the block, since the published code overwrites the output of the body with it.

    Args:
        stride: the stride of the body, by which h is pooled.
    """

    def __init__(self, body: nn.Module, downsample: nn.Module, *, hidden: int, stride: int) -> None:
        super().__init__(body, downsample)
        self.hidden_norm = nn.BatchNorm2d(hidden)
        self.hidden, self.stride = hidden, stride

    def forward(self, both: Tensor, shared: "Aggregation") -> tuple[Tensor, "Aggregation"]:
        x, hidden = both[:, : -self.hidden], both[:, -self.hidden :]
        out = (self.body(both) + self.downsample(x)).relu()
        if self.stride > 1:
            hidden = F.avg_pool2d(hidden, self.stride, ceil_mode=True)
        hidden = self.hidden_norm(hidden + shared.project(out)).tanh()
        return torch.cat([out, shared.recurrent(hidden)], dim=1), shared


class Aggregation(nn.Module):
    """What the blocks of a stage share: the convolutions that update h."""

    def __init__(self, channels: int, *, hidden: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, hidden, 1, bias=False)
        self.recurrent = nn.Conv2d(hidden, hidden, 3, padding=1, bias=False)


class EmptyHidden(nn.Module):
    """h before the first block: zeros beside the features."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, 0, 0, self.hidden))


class LastHidden(nn.Module):
    """h after the last block, relu(norm(h)): the classifier reads it beside the features."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(hidden)
        self.hidden = hidden

    def forward(self, both: Tensor) -> Tensor:
        hidden = self.norm(both[:, -self.hidden :]).relu()
        return torch.cat([both[:, : -self.hidden], hidden], dim=1)

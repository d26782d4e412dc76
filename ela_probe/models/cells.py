"""Recurrent cells along the depth: the blocks of a stage share one, which reads every block.

The attention modules of the blocks step the cell's state, which is passed from block to block.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from ela_probe.models.channel_attention import reduced


class Cell(nn.Module, ABC):
    """Gates of a descriptor y and a state h, each through a bottleneck: W_y(y) + W_h(h).

    Args:
        gates: the number of gates; each has one number per channel.
        reduction: the number of channels divided by the width of the bottlenecks.
    """

    def __init__(self, channels: int, *, gates: int, reduction: int) -> None:
        super().__init__()
        self.gates = gates
        self.of_input = two_layers(channels, gates, reduction)
        self.of_state = two_layers(channels, gates, reduction)

    def forward(self, y: Tensor, hidden: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden state and memory after y. All are [batch, ..., channels]."""
        gates = self.of_input(y) + self.of_state(hidden)
        return self.update(gates.chunk(self.gates, dim=-1), memory)

    @abstractmethod
    def update(self, gates: tuple[Tensor, ...], memory: Tensor) -> tuple[Tensor, Tensor]:
        """The hidden state and the memory after the gates act on the memory."""


class DIACell(Cell):
    """DIA-LSTM (Huang et al., AAAI 2020, arXiv 1905.10671, eqs. 4-8), as published.

    c = f * c + i * tanh(g), h = o * sigmoid(c): an LSTM whose output stays in (0, 1).
    """

    def __init__(self, channels: int, *, reduction: int = 4) -> None:
        super().__init__(channels, gates=4, reduction=reduction)

    def update(self, gates: tuple[Tensor, ...], memory: Tensor) -> tuple[Tensor, Tensor]:
        enter, forget, new, out = gates
        memory = forget.sigmoid() * memory + enter.sigmoid() * new.tanh()
        return out.sigmoid() * memory.sigmoid(), memory


class DynamicSharingUnit(Cell):
    """DSU (Wang et al., IJCAI 2024, arXiv 2406.13392): no output gate, h = sigmoid(c)."""

    def __init__(self, channels: int, *, reduction: int = 4) -> None:
        super().__init__(channels, gates=3, reduction=reduction)

    def update(self, gates: tuple[Tensor, ...], memory: Tensor) -> tuple[Tensor, Tensor]:
        enter, forget, new = gates
        memory = forget.sigmoid() * memory + enter.sigmoid() * new.tanh()
        return memory.sigmoid(), memory


class Shared(nn.Module):
    """What the blocks of a stage share: a cell, whose state they pass from one to the next.

    The arguments of a block are this module and, after the first step, the cell's hidden state and
    memory, [batch, channels] each.

    Args:
        cell: None where pruning removed all that would read its state.
    """

    def __init__(self, cell: Cell | None) -> None:
        super().__init__()
        self.cell = cell

    def step(
        self, y: Tensor, hidden: Tensor | None = None, memory: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Hidden state and memory after a descriptor, [batch, channels]."""
        assert self.cell is not None
        if hidden is None or memory is None:
            hidden = memory = torch.zeros_like(y)
        return self.cell(y, hidden, memory)

    def peek(self, y: Tensor, hidden: Tensor, memory: Tensor) -> Tensor:
        """The hidden state after a step with each of n descriptors, [batch, n, channels]."""
        assert self.cell is not None
        return self.cell(y, hidden[:, None], memory[:, None])[0]


class Step(nn.Module):
    """Replaces a skipped site where the stage shares a cell: the cell still reads the block."""

    def forward(
        self, x: Tensor, residual: Tensor, shared: Shared, *state: Tensor
    ) -> tuple[Any, ...]:
        return x, shared, *shared.step(x.mean(dim=(2, 3)), *state)


def two_layers(channels: int, gates: int, reduction: int) -> nn.Sequential:
    """Two linear layers, from channels to `gates` times as many, narrow in between."""
    width = reduced(channels, reduction)
    return nn.Sequential(
        nn.Linear(channels, width), nn.ReLU(inplace=True), nn.Linear(width, gates * channels)
    )

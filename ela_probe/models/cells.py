"""Recurrent cells along the depth: the blocks of a stage share one, which reads every block.

The forward pass of a stage begins with `CellState(cell)`; the attention modules of its blocks step
the state.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

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


@dataclass
class CellState:
    """The state of a stage's cell in one forward pass.

    cell: None where pruning removed all that would read its state.
    hidden, memory: [batch, channels], None before the first step.
    """

    cell: Cell | None
    hidden: Tensor | None = None
    memory: Tensor | None = None

    def step(self, y: Tensor) -> Tensor:
        """Read a descriptor, [batch, channels]; returns the new hidden state."""
        assert self.cell is not None
        if self.hidden is None or self.memory is None:
            self.hidden = self.memory = torch.zeros_like(y)
        self.hidden, self.memory = self.cell(y, self.hidden, self.memory)
        return self.hidden

    def peek(self, y: Tensor) -> Tensor:
        """The hidden state after a step with each of n descriptors, [batch, n, channels]."""
        assert self.cell is not None
        assert self.hidden is not None
        assert self.memory is not None
        return self.cell(y, self.hidden[:, None], self.memory[:, None])[0]


class Shared(nn.Module):
    """What the blocks of a stage share: a cell. `begin` is called once per forward pass."""

    def __init__(self, cell: Cell | None) -> None:
        super().__init__()
        self.cell = cell

    def begin(self) -> CellState:
        return CellState(self.cell)


class Step(nn.Module):
    """Replaces a skipped site where the stage shares a cell: the cell still reads the block."""

    def forward(self, x: Tensor, residual: Tensor, state: CellState) -> Tensor:
        state.step(x.mean(dim=(2, 3)))
        return x


def two_layers(channels: int, gates: int, reduction: int) -> nn.Sequential:
    """Two linear layers, from channels to `gates` times as many, narrow in between."""
    width = reduced(channels, reduction)
    return nn.Sequential(
        nn.Linear(channels, width), nn.ReLU(inplace=True), nn.Linear(width, gates * channels)
    )

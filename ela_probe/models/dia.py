"""DIA (Huang et al., AAAI 2020, arXiv 1905.10671): a shared cell gates every block's channels."""

from typing import Any

from torch import Tensor, nn

from ela_probe.models.cells import Shared
from ela_probe.models.tap import Tap
from ela_probe.sites import Kind


class DIA(nn.Module):
    """x * h, before the block's shortcut is added; h is the cell's state after mean(x).

    h passes through `tap` as [batch, channels] in (0, 1): weights of channels, not of layers.
    """

    kind: Kind = "channel"

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.tap = Tap()

    def forward(
        self, x: Tensor, residual: Tensor, shared: Shared, *state: Tensor
    ) -> tuple[Any, ...]:
        hidden, memory = shared.step(x.mean(dim=(2, 3)), *state)
        return x * self.tap(hidden)[..., None, None], shared, hidden, memory

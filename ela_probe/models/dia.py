"""DIA (Huang et al., AAAI 2020, arXiv 1905.10671): a shared cell gates every block's channels."""

from torch import Tensor, nn

from ela_probe.models.cells import CellState
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

    def forward(self, x: Tensor, residual: Tensor, state: CellState) -> Tensor:
        gate = self.tap(state.step(x.mean(dim=(2, 3))))
        return x * gate[..., None, None]

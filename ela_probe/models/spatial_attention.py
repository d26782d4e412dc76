"""Spatial attention: CBAM (Woo et al., ECCV 2018, arXiv 1807.06521)."""

import torch
from torch import Tensor, nn

from ela_probe.models.channel_attention import reduced


class CBAM(nn.Module):
    """Channels first, then positions: x' = x * M_c(x), x'' = x' * M_s(x') (eqs. 1-3).

        M_c(x) = sigmoid(MLP(mean over positions) + MLP(max over positions))      [batch, c, 1, 1]
        M_s(x) = sigmoid(norm(7 x 7 convolution of (max, mean over channels)))  [batch, 1, h, w]

    The norm after the convolution and the biases of the MLP are as in the published code.

    Raises:
        ModelError: the reduction exceeds the channels.
    """

    def __init__(self, channels: int, *, reduction: int = 16) -> None:
        super().__init__()
        width = reduced(channels, reduction)
        self.squeeze = nn.Linear(channels, width)
        self.excite = nn.Linear(width, channels)
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(1, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.stack([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))])
        gate = self.excite(self.squeeze(pooled).relu()).sum(dim=0).sigmoid()
        x = x * gate[..., None, None]
        over_channels = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], dim=1)
        return x * self.norm(self.conv(over_channels)).sigmoid()

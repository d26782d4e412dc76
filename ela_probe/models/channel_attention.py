"""Channel attention: the output of a block's body, rescaled channel by channel."""

from torch import Tensor, nn

from ela_probe.errors import ModelError
from ela_probe.models.descriptor import describe, descriptor_conv


class SqueezeExcitation(nn.Module):
    """SE (Hu et al., CVPR 2018, arXiv 1709.01507): x * sigmoid(W_2 relu(W_1 mean(x))), eqs. 2-4.

    Args:
        reduction: the number of channels divided by the width between W_1 and W_2, which have no
            biases.

    Raises:
        ModelError: the reduction exceeds the channels.
    """

    def __init__(self, channels: int, *, reduction: int = 16) -> None:
        super().__init__()
        width = reduced(channels, reduction)
        self.squeeze = nn.Linear(channels, width, bias=False)
        self.excite = nn.Linear(width, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.excite(self.squeeze(x.mean(dim=(2, 3))).relu()).sigmoid()
        return x * gate[..., None, None]


class EfficientChannelAttention(nn.Module):
    """ECA (Wang et al., CVPR 2020, arXiv 1910.03151): x * sigmoid(1-D convolution of mean(x)).

    The convolution runs along the channels; its width grows with log2 of their number (eq. 12).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = descriptor_conv(channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.conv(describe(x)).sigmoid()
        return x * gate.squeeze(1)[..., None, None]


def reduced(channels: int, reduction: int) -> int:
    """channels // reduction. Raises ModelError where that is 0."""
    if reduction > channels:
        raise ModelError(
            f"reduction={reduction} exceeds the {channels} channels that it divides; "
            f"use at most {channels}"
        )
    return channels // reduction

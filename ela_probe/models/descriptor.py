"""The pooled descriptor of feature maps, and convolutions of it along the channels."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ela_probe.models.hand_written import by_hand, gradients_of, plain_backward


def describe(x: Tensor) -> Tensor:
    """The pooled descriptor of feature maps: [batch, channels, h, w] to [batch, 1, channels]."""
    # The gradient of a sum is a view. In float32 at least, since a sum can exceed float16's range.
    total = x.sum(dim=(2, 3), dtype=torch.promote_types(x.dtype, torch.float32))
    return (total / (x.shape[2] * x.shape[3])).to(x.dtype).unsqueeze(1)


def descriptor_conv(channels: int) -> nn.Conv1d:
    """The 1-D convolution along the channels in MRLA and ECA: its odd width grows with log2(C)."""
    width = int(abs((math.log2(channels) + 1) / 2))
    width += 1 - width % 2
    return nn.Conv1d(1, 1, width, padding=width // 2, bias=False)


def project(x: Tensor, *convolutions: nn.Conv1d) -> tuple[Tensor, ...]:
    """Apply several `descriptor_conv` to the descriptor of x: [batch, channels] each.

    A convolution with hooks (such as the masks of `torch.nn.utils.prune`) is called as a module.

    x: [batch, channels, height, width].
    """
    if not by_hand(x) or any(c._forward_hooks or c._forward_pre_hooks for c in convolutions):
        descriptor = describe(x)
        return tuple(convolution(descriptor).squeeze(1) for convolution in convolutions)
    taps = torch.cat([convolution.weight for convolution in convolutions]).squeeze(1)
    return _Project.apply(x, taps).unbind(0)


class _Project(torch.autograd.Function):
    """The convolutions as one matrix product over the windows of the descriptor.

    A convolution with one channel is slow. The gradient with respect to x is a view.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor) -> Tensor:
        windows = windows_of(describe(x), taps.shape[1]).to(taps.dtype)
        ctx.save_for_backward(x, windows, taps)
        return (taps @ windows.T).view(len(taps), *x.shape[:2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, windows, taps = ctx.saved_tensors
        if plain_backward():
            by_x, by_taps = gradients_of(plain_projection, (x, taps), grad)
            return by_x, by_taps
        grad = grad.to(taps.dtype)  # under autocast it may have a lower precision
        by_taps = grad.reshape(len(taps), -1) @ windows
        turned = windows_of(grad.transpose(0, 1), taps.shape[1])
        by_descriptor = turned @ taps.flip(1).reshape(-1, 1)
        batch, channels, height, width = x.shape
        by_mean = (by_descriptor / (height * width)).view(batch, channels, 1, 1)
        return by_mean.to(x.dtype).expand(x.shape), by_taps


def plain_projection(x: Tensor, taps: Tensor) -> Tensor:
    """The same by plain operations. taps: [parts, width]. Returns [parts, batch, channels]."""
    windows = windows_of(describe(x), taps.shape[1]).to(taps.dtype)
    return (taps @ windows.T).view(len(taps), *x.shape[:2])


def windows_of(rows: Tensor, width: int) -> Tensor:
    """[batch, parts, channels] to [batch * channels, parts * width], padded with zeros."""
    padded = F.pad(rows, (width // 2, width // 2)).unfold(2, width, 1)
    return padded.transpose(1, 2).reshape(-1, rows.shape[1] * width)

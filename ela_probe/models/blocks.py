"""Residual blocks (He et al. 2016): the sum of a body and a shortcut, with attention modules."""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn


class Block(nn.Module):
    """relu(body + shortcut), with attention to the blocks of the stage so far.

    What the blocks of a stage share is passed from one to the next as arguments, tensors among
    them. A block changes none of it, so it can run again: `torch.utils.checkpoint` takes blocks.

    Args:
        gate: acts on the output of the body, before the sum. None: no gate.
        retrieval: acts on the output of the block. None: no retrieval.
    """

    def __init__(
        self,
        body: nn.Module,
        downsample: nn.Module,
        *,
        gate: nn.Module | None = None,
        retrieval: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.body = body
        self.downsample = downsample
        self.gate = gate
        self.retrieval = retrieval
        self.stand_ins = nn.ModuleDict()  # of removed attention modules, by their attribute

    def forward(self, x: Tensor, *state: Any) -> Any:
        """The output, alone or, where the stage has a state, with the state after this block."""
        residual = self.downsample(x)
        out = self.body(x)
        if self.gate is not None:
            out, state = parted(self.gate(out, residual, *state))
        if "gate" in self.stand_ins:
            out = self.stand_ins["gate"](out)
        out = out.add_(residual).relu_()
        if self.retrieval is not None:
            out, state = parted(self.retrieval(out, residual, *state))
        if "retrieval" in self.stand_ins:
            out = self.stand_ins["retrieval"](out)
        return (out, *state) if state else out


def run(blocks: Iterable[nn.Module], x: Tensor, state: tuple[Any, ...]) -> Tensor:
    """The output of the last block of a stage that begins with this state."""
    for block in blocks:
        x, state = parted(block(x, *state))
    return x


def parted(result: Any) -> tuple[Tensor, tuple[Any, ...]]:
    """The output of a block or of its attention, and the state after it."""
    return (result[0], tuple(result[1:])) if isinstance(result, tuple | list) else (result, ())


def basic(channels: int, planes: int, stride: int) -> nn.Sequential:
    """Two 3 x 3 convolutions; `planes` channels out."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, planes, 3, stride, padding=1, bias=False),
            bn1=nn.BatchNorm2d(planes),
            relu1=nn.ReLU(inplace=True),
            conv2=nn.Conv2d(planes, planes, 3, padding=1, bias=False),
            bn2=nn.BatchNorm2d(planes),
        )
    )


def bottleneck(channels: int, planes: int, stride: int) -> nn.Sequential:
    """A 1 x 1, a 3 x 3 (with the stride) and a 1 x 1 convolution; 4 x `planes` channels out."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, planes, 1, bias=False),
            bn1=nn.BatchNorm2d(planes),
            relu1=nn.ReLU(inplace=True),
            conv2=nn.Conv2d(planes, planes, 3, stride, padding=1, bias=False),
            bn2=nn.BatchNorm2d(planes),
            relu2=nn.ReLU(inplace=True),
            conv3=nn.Conv2d(planes, planes * 4, 1, bias=False),
            bn3=nn.BatchNorm2d(planes * 4),
        )
    )


def shortcut(channels: int, out_channels: int, stride: int) -> nn.Module:
    """A 1 x 1 convolution where the shape changes, else the identity."""
    if stride == 1 and channels == out_channels:
        return nn.Identity()
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(channels, out_channels, 1, stride, bias=False),
            bn=nn.BatchNorm2d(out_channels),
        )
    )

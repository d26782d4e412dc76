"""CIFAR ResNets (He et al. 2016), plain or with MRLA-B or MRLA-L after every block.

The arithmetic is that of bgx666/KCLA's CIFAR networks `resnet`, `mrla_base` and `mrla_light`.
"""

from collections import OrderedDict
from typing import Literal

from torch import Tensor, nn

from ela_probe.errors import ModelError
from ela_probe.models.attention import MRLABase, MRLALight, Sources, describe

RETRIEVALS = {"mrla_b": MRLABase, "mrla_l": MRLALight}


class ResNet(nn.Module):
    """A CIFAR ResNet of three stages of 16, 32 and 64 planes.

    Args:
        depth: 6n+2 with basic blocks, 9n+2 with bottlenecks (n blocks a stage).
        attention: the retrieval after each block; None is the plain network.
        block: "basic" (two 3 x 3 convolutions) or "bottleneck" (1 x 1, 3 x 3, 1 x 1, four times
            the planes out).
        head_dim: channels per head of the layer attention.
        drop_path: probability of dropping a sample's retrieval in training (stochastic depth).

    Input: [batch, in_channels, height, width], any size from 8 x 8. Output: [batch, num_classes].

    Raises:
        ModelError: the depth doesn't fit the block, or head_dim doesn't divide the channels.
    """

    def __init__(
        self,
        depth: int = 20,
        *,
        attention: Literal["mrla_b", "mrla_l"] | None = None,
        block: Literal["basic", "bottleneck"] = "basic",
        num_classes: int = 10,
        in_channels: int = 3,
        head_dim: int = 16,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        convolutions, body, expansion = (6, basic, 1) if block == "basic" else (9, bottleneck, 4)
        if depth < convolutions + 2 or (depth - 2) % convolutions:
            below = max(1, (depth - 2) // convolutions) * convolutions + 2
            raise ModelError(
                f"depth {depth} is not {convolutions}n+2 as {block} blocks need; "
                f"use {below} or {below + convolutions}"
            )
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.stages = nn.ModuleList()
        channels = 16
        for planes, first_stride in ((16, 1), (32, 2), (64, 2)):
            stage = nn.ModuleList()
            for index in range((depth - 2) // convolutions):
                stride = first_stride if index == 0 else 1
                retrieval = None
                if attention is not None:
                    retrieval = RETRIEVALS[attention](
                        planes * expansion, head_dim=head_dim, drop_path=drop_path
                    )
                stage.append(
                    Block(
                        body(channels, planes, stride),
                        shortcut(channels, planes * expansion, stride),
                        retrieval,
                    )
                )
                channels = planes * expansion
            self.stages.append(stage)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        for stage in self.stages:
            sources = Sources(block.retrieval for block in stage)  # type: ignore[attr-defined]
            for block in stage:  # type: ignore[attr-defined]
                x = block(x, sources)
        return self.fc(describe(x).squeeze(1))


class Block(nn.Module):
    """relu(body + shortcut), then the retrieval. A block with no retrieval has None there."""

    def __init__(self, body: nn.Module, downsample: nn.Module, retrieval: nn.Module | None) -> None:
        super().__init__()
        self.body = body
        self.downsample = downsample
        self.retrieval = retrieval

    def forward(self, x: Tensor, sources: Sources) -> Tensor:
        residual = self.downsample(x)
        out = self.body(x).add_(residual).relu_()
        return out if self.retrieval is None else self.retrieval(out, residual, sources)


def basic(channels: int, planes: int, stride: int) -> nn.Sequential:
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
    if stride == 1 and channels == out_channels:
        return nn.Identity()
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(channels, out_channels, 1, stride, bias=False),
            bn=nn.BatchNorm2d(out_channels),
        )
    )

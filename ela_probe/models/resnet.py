"""ResNets for CIFAR and for ImageNet (He et al. 2016): one backbone, with any attention mechanism.

The arithmetic is that of the published code that docs/models.md names.
"""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from ela_probe.errors import ModelError
from ela_probe.models.attention_mechanisms import AttentionMechanism
from ela_probe.models.blocks import Block, basic, bottleneck, run, shortcut
from ela_probe.models.descriptor import describe
from ela_probe.models.mrla import Sources, inside
from ela_probe.models.rla import EmptyHidden, LastHidden, RLABlock

Stem = Literal["small", "plain", "deep"]
BODIES = {"basic": (basic, 1), "bottleneck": (bottleneck, 4)}  # with their expansion of the planes
PLAIN = AttentionMechanism()
IMAGENET_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


@dataclass(frozen=True)
class Layout:
    """The structure of a ResNet without its attention: the stem, and blocks and planes by stage.

    stem: "small" (3 x 3, keeps the size), "plain" (7 x 7 and a pooling, to a quarter of the size)
        or "deep" (the same with three 3 x 3 convolutions).
    block: "basic" or "bottleneck" (4 x planes channels out).
    zero_init: the last norm of every block starts at zero, so that it starts as its shortcut.
    """

    stem: Stem
    blocks: tuple[int, ...]
    planes: tuple[int, ...]
    block: Literal["basic", "bottleneck"]
    zero_init: bool = False


def cifar(depth: int, block: Literal["basic", "bottleneck"] = "basic") -> Layout:
    """Three stages of 16, 32 and 64 planes, for images of at least 8 x 8.

    Args:
        depth: 6n+2 with basic blocks, 9n+2 with bottlenecks (n blocks per stage).

    Raises:
        ModelError: the depth does not fit the block.
    """
    convolutions = {"basic": 6, "bottleneck": 9}[block]
    if depth < convolutions + 2 or (depth - 2) % convolutions:
        below = max(1, (depth - 2) // convolutions) * convolutions + 2
        raise ModelError(
            f"depth {depth} is not {convolutions}n+2 as {block} blocks need; "
            f"use {below} or {below + convolutions}"
        )
    return Layout("small", ((depth - 2) // convolutions,) * 3, (16, 32, 64), block)


def imagenet(depth: int, stem: Literal["plain", "deep"] = "plain") -> Layout:
    """Four stages of bottlenecks with 64 to 512 planes, for images of at least 32 x 32.

    Designed for 224 x 224.

    Args:
        depth: 50, 101 or 152. stem: "deep" as in joyfang1106/MRLA's MRLA-B.

    Raises:
        ModelError: another depth.
    """
    if depth not in IMAGENET_BLOCKS:
        raise ModelError(f"an ImageNet ResNet has no depth {depth}; use 50, 101 or 152")
    return Layout(stem, IMAGENET_BLOCKS[depth], (64, 128, 256, 512), "bottleneck", zero_init=True)


class ResNet(nn.Module):
    """A ResNet with an attention mechanism, or plain.

    Args:
        layout: `cifar(depth)` or `imagenet(depth)`.
        attention: from `ela_probe.models.attention_mechanisms`; by default none.

    Input: [batch, in_channels, height, width]. Output: [batch, num_classes].

    Raises:
        ModelError: the arguments of the attention do not fit the channels.
    """

    takes_channels_last = True  # see system.memory_format

    def __init__(
        self,
        layout: Layout,
        attention: AttentionMechanism = PLAIN,
        *,
        num_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        body, expansion = BODIES[layout.block]
        channels = layout.planes[0]
        self.conv1 = first_convolution(layout.stem, in_channels, channels)
        self.bn1 = nn.BatchNorm2d(channels)
        self.shrink = nn.Identity() if layout.stem == "small" else nn.MaxPool2d(3, 2, padding=1)
        hidden = attention.hidden
        self.before = EmptyHidden(hidden) if hidden else nn.Identity()
        self.stages = nn.ModuleList()
        self.shared = nn.ModuleDict()  # by the number of the stage, where its blocks share a module
        for number, (planes, blocks) in enumerate(zip(layout.planes, layout.blocks, strict=True)):
            stage = nn.ModuleList()
            for index in range(blocks):
                stride = 2 if index == 0 and number > 0 else 1
                convolutions = body(channels + hidden, planes, stride)
                downsample = shortcut(channels, planes * expansion, stride)
                channels = planes * expansion
                stage.append(
                    block_with_attention(attention, channels, convolutions, downsample, stride)
                )
            self.stages.append(stage)
            if attention.shared is not None:
                self.shared[str(number)] = attention.shared(channels)
        self.after = LastHidden(hidden) if hidden else nn.Identity()
        self.fc = nn.Linear(channels + hidden, num_classes)
        self.initialise(zero_init=layout.zero_init)

    def initialise(self, *, zero_init: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Block) and zero_init:
                norms = [
                    part for part in module.body.children() if isinstance(part, nn.BatchNorm2d)
                ]
                nn.init.zeros_(norms[-1].weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for number in range(len(self.stages)):
            x = self.run_stage(number, x)
        return self.fc(describe(self.after(x)).squeeze(1))

    def stem(self, x: Tensor) -> Tensor:
        """What the first stage takes."""
        return self.before(self.shrink(self.bn1(self.conv1(x)).relu()))

    def run_stage(self, number: int, x: Tensor) -> Tensor:
        """What a stage hands on; with RLA its last channels are the hidden map."""
        return run(self.stages[number], x, self.state_of(number))  # type: ignore[arg-type]

    def state_of(self, number: int) -> tuple[Any, ...]:
        """The state with which a stage begins; its first block takes it after the features."""
        if str(number) in self.shared:
            return (self.shared[str(number)],)
        retrievals = [block.retrieval for block in self.stages[number]]  # type: ignore[attr-defined]
        return (Sources(retrievals),) if inside(retrievals) else ()


def block_with_attention(
    attention: AttentionMechanism,
    channels: int,
    body: nn.Sequential,
    downsample: nn.Module,
    stride: int,
) -> Block:
    """A block with its modules of the attention mechanism."""
    if attention.body is not None:
        body.add_module("attention", attention.body(channels))
    if attention.hidden:
        return RLABlock(body, downsample, hidden=attention.hidden, stride=stride)
    parts = {"gate": attention.gate, "retrieval": attention.retrieval}
    built = {name: build(channels) for name, build in parts.items() if build is not None}
    return Block(body, downsample, **built)


def first_convolution(stem: Stem, in_channels: int, channels: int) -> nn.Module:
    """The convolutions before the first norm."""
    if stem == "small":
        return nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    if stem == "plain":
        return nn.Conv2d(in_channels, channels, 7, 2, padding=3, bias=False)
    half = channels // 2
    return nn.Sequential(
        nn.Conv2d(in_channels, half, 3, 2, padding=1, bias=False),
        nn.BatchNorm2d(half),
        nn.ReLU(inplace=True),
        nn.Conv2d(half, half, 3, padding=1, bias=False),
        nn.BatchNorm2d(half),
        nn.ReLU(inplace=True),
        nn.Conv2d(half, channels, 3, padding=1, bias=False),
    )

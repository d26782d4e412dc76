"""Networks whose softmaxes are no layer attention, though the length of some of them grows."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.foreign_models import Tokens

WIDTH = 4


class Attention(nn.Module):
    """Token attention with keys and values given; `fused` shows no weights."""

    def __init__(self, width: int = WIDTH, *, fused: bool = False) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.fused = fused

    def forward(
        self, x: Tensor, past: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """x: [N, tokens, width]. past: keys and values of earlier tokens."""
        key, value = self.key(x), self.value(x)
        if past:
            key, value = torch.cat([past[0], key], 1), torch.cat([past[1], value], 1)
        if self.fused:
            out = F.scaled_dot_product_attention(self.query(x), key, value)
        else:
            out = (self.query(x) @ key.transpose(1, 2)).softmax(-1) @ value
        return x + out, (key, value)


class VisionTransformer(nn.Module):
    """Patches and a class token; images of one size only."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.positions = nn.Parameter(torch.randn(1, 5, WIDTH))
        self.blocks = nn.Sequential(*(Tokens(WIDTH, 2) for _ in range(3)))

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.blocks(x)[:, 0]


class Decoder(nn.Module):
    """Two layers with a cache that decode six tokens greedily behind a prompt."""

    def __init__(self, *, fused: bool = False) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, WIDTH), nn.Linear(WIDTH, 11)
        self.layers = nn.ModuleList(Attention(fused=fused) for _ in range(2))

    def step(self, x: Tensor, caches: list[tuple[Tensor, ...]]) -> Tensor:
        for number, layer in enumerate(self.layers):
            x, caches[number] = layer(x, caches[number])
        return x

    def forward(self, ids: Tensor) -> Tensor:
        caches: list[tuple[Tensor, ...]] = [(), ()]
        x = self.step(self.embed(ids), caches)
        for _ in range(6):
            x = self.step(self.embed(self.head(x[:, -1:]).argmax(-1)), caches)
        return self.head(x)


class Captioner(Decoder):
    """The same from images of one size, which have no length that could be another."""

    def __init__(self) -> None:
        super().__init__()
        self.see = nn.Linear(48, WIDTH)

    def forward(self, images: Tensor) -> Tensor:
        caches: list[tuple[Tensor, ...]] = [(), ()]
        x = self.step(self.see(images.flatten(1))[:, None], caches)
        for _ in range(6):
            x = self.step(self.embed(self.head(x[:, -1:]).argmax(-1)), caches)
        return self.head(x)


class SegmentMemory(nn.Module):
    """Segments of four tokens; every layer also attends over its inputs in all earlier ones."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Attention() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        memories: list[tuple[Tensor, ...]] = [(), ()]
        outputs = []
        for segment in x.unflatten(1, (-1, 4)).unbind(1):
            for number, layer in enumerate(self.layers):
                segment, memory = layer(segment, memories[number])
                memories[number] = tuple(part.detach() for part in memory)
            outputs.append(segment)
        return torch.cat(outputs, 1)


class TransformerXL(nn.Module):
    """Segments of four tokens; keys and values include the states of the segment before.

    `kept`: the last segment of a pass is what the next pass remembers, as in training.
    """

    def __init__(self, *, kept: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Attention() for _ in range(3))
        self.kept = kept
        self.memories: list[Tensor | None] = [None] * 3

    def forward(self, x: Tensor) -> Tensor:
        memories = list(self.memories)
        outputs = []
        for segment in x.unflatten(1, (-1, 4)).unbind(1):
            for number, part in enumerate(self.layers):
                layer: Any = part
                before, memories[number] = memories[number], segment.detach()
                past = () if before is None else (layer.key(before), layer.value(before))
                segment, _ = layer(segment, past)
            outputs.append(segment)
        if self.kept:
            self.memories = memories
        return torch.cat(outputs, 1)


class UNet(nn.Module):
    """Two levels down and up; each attends over its pixels and over the five tokens of a text."""

    def __init__(self, *, fused: bool = False) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, WIDTH, 1)
        self.text = nn.Parameter(torch.randn(1, 5, WIDTH))
        self.pixels = nn.ModuleList(Attention(fused=fused) for _ in range(5))
        self.texts = nn.ModuleList(CrossAttention(fused=fused) for _ in range(5))
        self.down = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 2, 2) for _ in range(2))
        self.up = nn.ModuleList(nn.ConvTranspose2d(WIDTH, WIDTH, 2, 2) for _ in range(2))
        self.merge = nn.ModuleList(nn.Conv2d(2 * WIDTH, WIDTH, 1) for _ in range(2))

    def level(self, number: int, maps: Tensor) -> Tensor:
        x, _ = self.pixels[number](maps.flatten(2).transpose(1, 2))
        x = self.texts[number](x, self.text.expand(len(x), -1, -1))
        return x.transpose(1, 2).unflatten(2, maps.shape[2:])

    def forward(self, images: Tensor) -> Tensor:
        x, skips = self.enter(images), []
        for number, down in enumerate(self.down):
            x = self.level(number, x)
            skips.append(x)
            x = down(x)
        x = self.level(2, x)
        for number, (up, merge) in enumerate(zip(self.up, self.merge, strict=True)):
            x = self.level(3 + number, merge(torch.cat([up(x), skips.pop()], 1)))
        return x


class CrossAttention(nn.Module):
    """Attention of x over a context; `fused` shows no weights."""

    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.fused = fused

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        query, key, value = self.query(x), self.key(context), self.value(context)
        if self.fused:
            return x + F.scaled_dot_product_attention(query, key, value)
        return x + (query @ key.transpose(1, 2)).softmax(-1) @ value


class Chunks(nn.Module):
    """Chunks of two tokens, the last of which may be shorter; each reads all means so far."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.mean = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        memory: list[Tensor] = []
        outputs = []
        for chunk in x.split(2, 1):
            memory.append(self.mean(chunk.mean(1)))
            past = torch.stack(memory, 1)
            weights = (past * self.query(chunk[:, :1])).sum(-1).softmax(-1)
            outputs.append((weights[..., None] * past).sum(1))
        return torch.stack(outputs, 1)


class History(nn.Module):
    """A recurrent cell that attends over all its earlier states; `fixed`: of one length only."""

    def __init__(self, *, fixed: int | None = None) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(WIDTH, WIDTH)
        self.positions = None if fixed is None else nn.Parameter(torch.randn(fixed, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        if self.positions is not None:
            x = x + self.positions
        h = c = x.new_zeros(len(x), WIDTH)
        states: list[Tensor] = []
        for token in x.unbind(1):
            h, c = self.cell(token, (h, c))
            states.append(h)
            past = torch.stack(states, 1)
            h = h + ((past @ h[..., None]).softmax(1) * past).sum(1)
        return h


class Experts(nn.Module):
    """Layers with ever more experts, mixed by a softmax."""

    def __init__(self, *counts: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "router": nn.Linear(WIDTH, count),
                    "experts": nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(count)),
                }
            )
            for count in counts or (2, 4, 6, 8)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            weights = layer["router"](x).softmax(-1)  # type: ignore[index]
            outputs = torch.stack([expert(x).relu() for expert in layer["experts"]], -1)  # type: ignore[index]
            x = x + (outputs * weights[..., None, :]).sum(-1)
        return x


class Heads(nn.Module):
    """Class probabilities after every layer, of 2, 3, 4 and 5 classes; `joined` side by side."""

    def __init__(self, *, joined: bool = False) -> None:
        super().__init__()
        self.joined = joined
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.heads = nn.ModuleList(nn.Linear(WIDTH, 2 + k) for k in range(4))

    def forward(self, x: Tensor) -> list[Tensor] | Tensor:
        outputs = []
        for layer, head in zip(self.layers, self.heads, strict=True):
            x = layer(x).relu()
            outputs.append(head(x).softmax(-1))
        return torch.cat(outputs, -1) if self.joined else outputs


class Pyramid(nn.Module):
    """Attention over 10, 20, 30 and 40 tokens, joined with those of the level before."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList(Attention() for _ in range(4))
        self.grow = nn.ModuleList(nn.Linear(10, 10) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for level, grow in zip(self.levels, self.grow, strict=True):
            x, _ = level(x)
            x = torch.cat([x, grow(x[:, :10].transpose(1, 2)).transpose(1, 2)], 1)
        return x


class Prompts(nn.Module):
    """Every layer adds ten learned tokens to the sequence (`summary`: one of its own making)."""

    def __init__(self, *, summary: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Attention() for _ in range(4))
        self.prompts = nn.ParameterList(torch.randn(1, 10, WIDTH) for _ in range(4))
        self.summary = summary

    def forward(self, x: Tensor) -> Tensor:
        for layer, prompt in zip(self.layers, self.prompts, strict=True):
            new = x.mean(1, keepdim=True) if self.summary else prompt.expand(len(x), -1, -1)
            x, _ = layer(torch.cat([x, new], 1))
        return x


class Windows(nn.Module):
    """Attention in windows of four tokens, and half as many tokens in the next stage."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(Tokens(WIDTH, 2) for _ in range(3))
        self.merge = nn.ModuleList(nn.Linear(2 * WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for stage, merge in zip(self.stages, self.merge, strict=True):
            windows = x.unflatten(1, (-1, 4)).flatten(0, 1)
            x = merge(stage(windows).reshape(len(x), -1, 2 * WIDTH))
        return x

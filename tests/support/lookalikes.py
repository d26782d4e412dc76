"""Networks with the structure of published ones, written from the papers' formulas.

Only submodules, attributes, signatures and shapes are those of the published code, as adapters
look at nothing else.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

PLANES = (16, 32, 64)


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))[:, None]


class Projections(nn.Module):
    """q, k and v of MRLA: Wq, Wk along a pooled descriptor's channels, Wv depthwise."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        width = int(abs((math.log2(channels) + 1) / 2))
        width += 1 - width % 2
        self.heads = heads
        self.Wq = nn.Conv1d(1, 1, width, padding=width // 2, bias=False)
        self.Wk = nn.Conv1d(1, 1, width, padding=width // 2, bias=False)
        self.Wv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)

    def by_head(self, descriptor: Tensor) -> Tensor:
        """[b, t, c] to [b, heads, t, c / heads]."""
        return descriptor.unflatten(2, (self.heads, -1)).transpose(1, 2)


class SoftLayer(Projections):
    """o_t = Σ softmax(q_t · k_s / √d) V_s; `raw`: sources are features, projected at each use."""

    def __init__(self, channels: int, heads: int, first: bool, raw: bool = False) -> None:
        super().__init__(channels, heads)
        self.init_cell, self.raw = first, raw
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        key, value = (pooled(x), x) if self.raw else (self.Wk(pooled(x)), self.Wv(x))
        if self.init_cell:
            keys, values = key, value[:, None]
        else:
            keys, values = torch.cat([keys, key], 1), torch.cat([values, value[:, None]], 1)
        k, v = keys, values
        if self.raw:
            k = self.Wk(keys.flatten(0, 1)[:, None]).view_as(keys)
            v = self.Wv(values.flatten(0, 1)).view_as(values)
        q, k = self.by_head(self.Wq(pooled(x))), self.by_head(k)
        weights = self.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]))  # [b, g, 1, t]
        out = torch.einsum("bgs,bsgdhw->bgdhw", weights[:, :, 0], v.unflatten(2, (self.heads, -1)))
        return out.flatten(1, 2), keys, values


class SoftWrapper(nn.Module):
    def __init__(self, channels: int, first: bool, raw: bool = False, inner: str = "mrla") -> None:
        super().__init__()
        self.inner, self.init_cell = inner, first
        self.add_module(inner, SoftLayer(channels, channels // 16, first, raw))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return getattr(self, self.inner)(x, keys, values)


class GateLayer(Projections):
    def __init__(self, channels: int, heads: int) -> None:
        super().__init__(channels, heads)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.by_head(self.Wq(pooled(x))), self.by_head(self.Wk(pooled(x)))
        gate = (q * k).sum(-1) / math.sqrt(q.shape[-1])
        value = self.Wv(x).unflatten(1, (self.heads, -1))
        return (self.sigmoid(gate[..., None, None]) * value).flatten(1, 2)


class GateWrapper(nn.Module):
    """o_t = g_t V_t + λ_t o_{t-1}."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mrla = GateLayer(channels, channels // 16)
        self.lambda_t = nn.Parameter(torch.randn(channels, 1, 1))

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        return self.mrla(x) + self.lambda_t * before


class Plain(nn.Module):
    """A basic residual block: returns its output and its shortcut."""

    def __init__(self, channels: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample: nn.Module | None = None
        if channels != planes:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, planes, 1, stride, bias=False), nn.BatchNorm2d(planes)
            )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(out + shortcut), shortcut


class RowDrop(nn.Module):
    """Drops whole samples in training, as stochastic depth does; needs a batch axis."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.ones(x.shape[0], *[1] * (x.dim() - 1)) if self.training else x


class SoftBlock(Plain):
    def __init__(self, channels: int, planes: int, stride: int, first: bool, raw: bool) -> None:
        super().__init__(channels, planes, stride)
        self.mrla = SoftWrapper(planes, first, raw)
        self.bn_mrla = nn.BatchNorm2d(planes)
        self.drop_path = RowDrop()

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        out, _ = super().forward(x)
        retrieved, keys, values = self.mrla(out, keys, values)
        return out + self.drop_path(self.relu(self.bn_mrla(retrieved))), keys, values


class GateBlock(Plain):
    def __init__(self, channels: int, planes: int, stride: int) -> None:
        super().__init__(channels, planes, stride)
        self.mrla = GateWrapper(planes)
        self.bn_mrla = nn.BatchNorm2d(planes)
        self.drop_path = RowDrop()

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        out, shortcut = super().forward(x)
        return out + self.drop_path(self.bn_mrla(self.mrla(out, shortcut)))


class Network(nn.Module, ABC):
    """Three stages of `blocks` blocks; a subclass says what a stage is and how it runs."""

    def __init__(self, blocks: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        shapes, channels = [], 16
        for planes in PLANES:
            shapes.append(
                [(planes if t else channels, planes, 2 if planes > channels and not t else 1)
                 for t in range(blocks)]
            )  # fmt: skip
            channels = planes
        self.stages = nn.ModuleList(self.stage(shape) for shape in shapes)
        self.fc = nn.Linear(PLANES[-1], 10)

    @abstractmethod
    def stage(self, shapes: list[tuple[int, int, int]]) -> nn.Module:
        """A stage of blocks of these (channels in, planes, stride)."""

    def features(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(self.bn1(self.conv1(x)).relu()).mean((2, 3)))


class SoftNetwork(Network):
    """MRLA-B's structure; `raw`: that of its equation 4."""

    def __init__(self, blocks: int = 4, *, raw: bool = False) -> None:
        self.raw = raw
        super().__init__(blocks)

    def stage(self, shapes: list[tuple[int, int, int]]) -> nn.Module:
        return nn.ModuleList(SoftBlock(*s, t == 0, self.raw) for t, s in enumerate(shapes))

    def features(self, x: Tensor) -> Tensor:
        keys = values = None
        for stage in self.stages:
            for block in stage:  # type: ignore[attr-defined]
                x, keys, values = block(x, keys, values)
        return x


class GateNetwork(Network):
    """MRLA-L's structure."""

    def stage(self, shapes: list[tuple[int, int, int]]) -> nn.Module:
        return nn.Sequential(*(GateBlock(*s) for s in shapes))

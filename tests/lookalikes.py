"""Networks with the structure of published ones, written from the papers' formulas.

Only submodules, attributes, signatures and shapes are those of the published code, as adapters
look at nothing else.
"""

import math

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


class Network(nn.Module):
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

    def stage(self, shapes: list[tuple[int, int, int]]) -> nn.Module:
        raise NotImplementedError

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


class Cell(nn.Module):
    """A recurrent cell of four gates (DIA) or three (DLA's refresh)."""

    def __init__(self, channels: int, gates: int) -> None:
        super().__init__()
        self.nlayers = 1

        def squeeze() -> nn.Module:
            return nn.Sequential(
                nn.Linear(channels, channels // 4), nn.ReLU(),
                nn.Linear(channels // 4, gates * channels),
            )  # fmt: skip

        self.w_ih, self.w_hh = nn.ModuleList([squeeze()]), nn.ModuleList([squeeze()])

    def forward(self, x: Tensor, hidden: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = hidden[0][0], hidden[1][0]
        parts = (self.w_ih[0](x) + self.w_hh[0](h)).unflatten(1, (-1, x.shape[1])).unbind(1)
        c = parts[1].sigmoid() * c + parts[0].sigmoid() * parts[2].tanh()
        h = c.sigmoid() * (parts[3].sigmoid() if len(parts) == 4 else 1)
        return h[None], c[None]


class GatedStage(nn.Module):
    """DIA: the shared cell gates every block's output."""

    def __init__(self, shapes: list[tuple[int, int, int]], gates: int = 4) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Plain(*s) for s in shapes)
        self.memory = Cell(shapes[0][1], gates)

    def forward(self, x: Tensor) -> Tensor:
        for t, block in enumerate(self.blocks):
            x, shortcut = block(x)
            descriptor = x.mean((2, 3))
            if t == 0:
                h = c = torch.zeros_like(descriptor)[None]
            h, c = self.memory(descriptor, (h, c))
            x = (x * h[-1].view(h.size(1), h.size(2), 1, 1) + shortcut).relu()
        return x


class GatedNetwork(Network):
    """DIA's structure. `gates=3` makes a near miss: the cell of DLA with no layer attention."""

    def __init__(self, blocks: int = 4, *, gates: int = 4) -> None:
        self.gates = gates
        super().__init__(blocks)

    def stage(self, shapes: list[tuple[int, int, int]]) -> nn.Module:
        return GatedStage(shapes, self.gates)


class Attending(nn.Module):
    def __init__(self, planes: int, first: bool) -> None:
        super().__init__()
        self.look = SoftWrapper(planes, first, inner="back")
        self.bn_look = nn.BatchNorm2d(planes)
        self.drop_path, self.relu = nn.Identity(), nn.ReLU()

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out, keys, values = self.look(x, keys, values)
        return x + self.drop_path(self.relu(self.bn_look(out))), keys, values


class RefreshingStage(nn.Module):
    """DLA-B: a cell rescales all earlier keys and values before every retrieval."""

    def __init__(self, shapes: list[tuple[int, int, int]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Plain(*s) for s in shapes)
        self.attention = nn.Sequential(*(Attending(s[1], t == 0) for t, s in enumerate(shapes)))
        self.lstm = Cell(shapes[0][1], 3)

    def forward(self, x: Tensor) -> Tensor:
        keys = values = None
        for t, (layer, attention) in enumerate(zip(self.layers, self.attention, strict=True)):
            x, _ = layer(x)
            descriptor = x.mean((2, 3))
            if t == 0:
                h = c = torch.zeros_like(descriptor)[None]
            h, c = self.lstm(descriptor, (h, c))
            if keys is not None:
                fresh = [self.lstm(key, (h, c))[0][0] for key in keys.unbind(1)]
                keys = keys * torch.stack(fresh, 1)
                fresh = [self.lstm(v.mean((2, 3)), (h, c))[0][0] for v in values.unbind(1)]
                values = values * torch.stack(fresh, 1)[..., None, None]
            x, keys, values = attention(x, keys, values)
        return x


class RefreshingNetwork(Network):
    """DLA-B's structure."""

    def stage(self, shapes: list[tuple[int, int, int]]) -> nn.Module:
        return RefreshingStage(shapes)


class NormLayer(Projections):
    """KCLA: running sums of features weighted by exp(min(‖k‖ / d, 10)); `limit` is the 10."""

    def __init__(self, channels: int, before: int, first: bool, limit: float = 10.0) -> None:
        super().__init__(channels, channels // 16)
        self.init_layer, self.limit = first, limit
        if first:
            self.adjust_channel = nn.Conv2d(before, channels, 1, 2, bias=False)
            self.u_Wk = nn.Conv1d(1, 1, 3, padding=1, bias=False)
            self.u_bn = nn.BatchNorm2d(channels)
        self.bn_attention = nn.BatchNorm2d(channels)
        self.head_att = nn.Linear(self.heads, self.heads, bias=False)
        spread = torch.linspace(0.5, 1.5, self.heads).view(1, -1, 1, 1, 1)
        self.norm_d = nn.Parameter(spread, requires_grad=False)

    def c(self, key: Tensor) -> Tensor:
        return (key.norm(dim=2, keepdim=True) / self.norm_d).clamp(max=self.limit).exp()

    def split(self, x: Tensor) -> Tensor:
        return x.view(len(x), self.heads, -1, *x.shape[2:])

    def forward(self, x: Tensor, info: list | None = None) -> tuple[Tensor, list]:
        u, keys, z = info or (0, 0, 0)
        if self.init_layer and info is not None:
            u = (u / z).flatten(1, 2)
            u = self.u_bn(self.adjust_channel(u) if u.shape != x.shape else u)
            z = self.c(self.split(self.u_Wk(pooled(u)).transpose(1, 2)[..., None]))
            u, keys = self.split(u) * z, 0
        key = self.split(self.Wk(pooled(x)).transpose(1, 2)[..., None])
        query = self.split(self.Wq(pooled(x)).transpose(1, 2)[..., None])
        u, keys, z = u + self.c(key) * self.split(x), keys + key, z + self.c(key)
        cosine = (query * key).sum(2) / key.norm(dim=2)
        gate = self.head_att(cosine[..., 0, 0])[..., None, None, None].sigmoid()
        out = self.Wv((u / (z + 1e-3)).flatten(1, 2))
        return self.bn_attention((gate * self.split(out)).flatten(1, 2)).relu(), [u, keys, z]


class NormBlock(Plain):
    def __init__(self, channels: int, planes: int, stride: int, first: bool, limit: float) -> None:
        super().__init__(channels, planes, stride)
        self.kcla = NormLayer(planes, channels, first, limit)

    def forward(self, x: Tensor, info: list | None) -> tuple[Tensor, list]:  # type: ignore[override]
        out, _ = super().forward(x)
        added, info = self.kcla(out, info)
        return out + added, info


class NormNetwork(Network):
    """KCLA's structure."""

    def __init__(self, blocks: int = 4, *, limit: float = 10.0) -> None:
        self.limit = limit
        super().__init__(blocks)

    def stage(self, shapes: list[tuple[int, int, int]]) -> nn.Module:
        return nn.ModuleList(NormBlock(*s, t == 0, self.limit) for t, s in enumerate(shapes))

    def features(self, x: Tensor) -> Tensor:
        info = None
        for stage in self.stages:
            for block in stage:  # type: ignore[attr-defined]
                x, info = block(x, info)
        return x

"""Look-alikes of networks that pass a state from block to block: DIA, DLA-B, KCLA."""

from typing import Any

import torch
from torch import Tensor, nn

from tests.support.lookalikes import Network, Plain, Projections, SoftWrapper, pooled


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
        keys: Any = None
        values: Any = None
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
        u: Any
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

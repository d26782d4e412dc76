"""A look-alike of DeiT with MRLA: the same submodules and signatures, other code."""

from typing import Any

import torch
from torch import Tensor, nn

WIDTH, HEADS, SIDE = 8, 2, 3


class TokenAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return (q @ k.transpose(1, 2)).softmax(-1) @ v


class Layer(nn.Module):
    """What both retrievals hold: 1-d convolutions over channels, a depthwise one over patches."""

    def __init__(self, init_cell: bool | None) -> None:
        super().__init__()
        self.Wq = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.Wk = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.Wv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH, bias=False)
        self.base = init_cell is not None
        if init_cell is not None:
            self.init_cell = init_cell
            self.softmax = nn.Softmax(dim=-1)
        else:
            self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor, keys: Any = None, values: Any = None) -> Any:
        n = len(x)
        mean = x.mean((2, 3)).unsqueeze(1)
        q, k, v = self.Wq(mean), self.Wk(mean), self.Wv(x)
        q = q.view(n, HEADS, 1, -1)
        if not self.base:
            gate = self.sigmoid((q * k.view(n, HEADS, 1, -1)).sum(-1).view(n, HEADS, 1, 1, 1))
            return (v.view(n, HEADS, -1, SIDE, SIDE) * gate).view_as(v)
        keys = k if self.init_cell else torch.cat((keys, k), 1)
        values = v[:, None] if self.init_cell else torch.cat((values, v[:, None]), 1)
        by_head = keys.view(n, -1, HEADS, WIDTH // HEADS).transpose(1, 2)
        weights = self.softmax(q @ by_head.transpose(2, 3))  # [n, heads, 1, t]
        split = values.view(n, -1, HEADS, WIDTH // HEADS, SIDE, SIDE)
        return (
            torch.einsum("ngt,ntgdhw->ngdhw", weights[:, :, 0], split).flatten(1, 2),
            keys,
            values,
        )


class Retrieval(nn.Module):
    def __init__(self, init_cell: bool | None) -> None:
        super().__init__()
        self.normx = nn.LayerNorm(WIDTH)
        self.mrla = Layer(init_cell)
        if init_cell is None:
            self.normo = nn.LayerNorm(WIDTH)
            self.lambda_t = nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: Tensor, *before: Any) -> Any:
        x = self.normx(x)
        image = x[:, 1:].transpose(1, 2).unflatten(-1, (SIDE, SIDE))
        if self.mrla.base:
            out, keys, values = self.mrla(image, *before)
            return torch.cat((x[:, :1], out.flatten(2).transpose(1, 2)), 1), keys, values
        out = self.mrla(image).flatten(2).transpose(1, 2)
        return torch.cat((x[:, :1], out + self.lambda_t * self.normo(before[0])[:, 1:]), 1)


class Block(nn.Module):
    def __init__(self, init_cell: bool | None) -> None:
        super().__init__()
        self.attn = TokenAttention()
        self.mrla = Retrieval(init_cell)
        self.base = init_cell is not None

    def forward(self, x: Tensor, keys: Any = None, values: Any = None) -> Any:
        before, x = x, x + self.attn(x)
        if not self.base:
            return x + self.mrla(x, before)
        added, keys, values = self.mrla(x, keys, values)
        return x + added, keys, values


class DeiT(nn.Module):
    def __init__(self, *, base: bool, depth: int = 6, every: int = 3) -> None:
        super().__init__()
        self.base = base
        self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.blocks = nn.ModuleList(Block(t % every == 0 if base else None) for t in range(depth))
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), 1)
        keys = values = None
        for block in self.blocks:
            if self.base:
                x, keys, values = block(x, keys, values)
            else:
                x = block(x)
        return self.head(x[:, 0])

"""A small decoder-only transformer, with Attention Residuals instead of the residual sum or plain.

Grouped-query attention (Ainslie et al. 2023), rotary positions (Su et al. 2021), RMSNorm, SwiGLU.
"""

from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ela_probe.errors import ModelError
from ela_probe.models.depth_attention import History, Recurrence, Residual, Retrieval

ROTARY_BASE = 10_000.0
INIT_STD = 0.02


class Transformer(nn.Module):
    """A causal language model of `depth` layers, each an attention and an MLP sublayer.

    Sublayer t computes v_{t+1} = f_t(norm(h_t)); v_0 is the embedding. With `attention="attnres"`
    h_t is retrieved from v_0..v_t (`Retrieval`), 2 x depth + 1 times; the head reads the last
    retrieval. With None h_t = h_{t−1} + v_t, the plain pre-norm transformer.

    Args:
        block_size: the number of sublayers whose outputs sum to one source; 1 is full AttnRes.
        dim: the width. heads: the number of query heads. kv_heads: the number of key and value
            heads, which divides `heads`.
        vocab_size: the number of tokens. tied: the head uses the matrix of the embedding.

    Input: token ids, int64 [batch, tokens], of any length. Output: [batch, tokens, vocab_size],
    for each token the logits of the next one.

    Raises:
        ModelError: `heads` does not divide the width into even numbers, or `kv_heads` not `heads`.
    """

    def __init__(
        self,
        depth: int = 6,
        *,
        attention: Literal["attnres"] | None = "attnres",
        block_size: int = 1,
        dim: int = 128,
        heads: int = 4,
        kv_heads: int = 2,
        vocab_size: int = 256,
        tied: bool = False,
    ) -> None:
        super().__init__()
        if dim % (2 * heads) or heads % kv_heads:
            raise ModelError(
                f"dim={dim}, heads={heads}, kv_heads={kv_heads} do not fit: dim must be a "
                "multiple of 2 x heads, and heads a multiple of kv_heads"
            )
        self.block_size = block_size
        self.tied = tied

        def sublayer(body: nn.Module) -> Sublayer:
            return Sublayer(Retrieval(dim) if attention else Residual(), nn.RMSNorm(dim), body)

        self.embedding = nn.Embedding(vocab_size, dim)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "attention": sublayer(CausalAttention(dim, heads=heads, kv_heads=kv_heads)),
                    "mlp": sublayer(SwiGLU(dim)),
                }
            )
            for _ in range(depth)
        )
        head = nn.Identity() if tied else nn.Linear(dim, vocab_size, bias=False)
        self.final = sublayer(head)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INIT_STD)

    def forward(self, tokens: Tensor) -> Tensor:
        sublayers = [sublayer for _, sublayer in self.sublayers()]
        last = self.last_reader()
        continued = [isinstance(sublayer.retrieval, Recurrence) for sublayer in sublayers]
        history = History(self.block_size)
        output = self.embedding(tokens)
        for site, sublayer in enumerate(sublayers):
            history = history.arrive(
                output,
                record=site <= last and sublayer.retrieval.source,
                continued=any(continued[site + 1 : site + 2]),
            )
            output, *state = sublayer(*history.as_arguments())
            history = History.of(*state)
        return F.linear(output, self.embedding.weight) if self.tied else output

    def sublayers(self) -> Iterator[tuple[str, "Sublayer"]]:
        """The sublayers in forward order by name; the last one is the head."""
        for index, layer in enumerate(self.layers):
            for name in ("attention", "mlp"):
                yield f"layers.{index}.{name}", layer[name]  # type: ignore[index]
        yield "final", self.final

    def last_reader(self) -> int:
        """The index of the last site that reads the sources, −1 if none does.

        Outputs after it are not kept.
        """
        reads = [isinstance(s.retrieval, Retrieval | Recurrence) for _, s in self.sublayers()]
        return max((site for site, reader in enumerate(reads) if reader), default=-1)


class Sublayer(nn.Module):
    """body(norm(what the site retrieves)), and the history after it.

    The history is passed as arguments (`History.as_arguments`), so `torch.utils.checkpoint` takes
    sublayers.
    """

    def __init__(
        self, retrieval: Retrieval | Residual | Recurrence, norm: nn.Module, body: nn.Module
    ) -> None:
        super().__init__()
        self.retrieval = retrieval
        self.norm = norm
        self.body = body

    def forward(self, *state: Any) -> tuple[Any, ...]:
        retrieved, history = self.retrieval(History.of(*state))
        return self.body(self.norm(retrieved)), *history.as_arguments()


class CausalAttention(nn.Module):
    """Softmax attention over the tokens so far; groups of query heads share a key and a value."""

    def __init__(self, dim: int, *, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.head_dim = dim // heads
        self.grouped = kv_heads != heads
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, kv_heads * self.head_dim, bias=False)
        self.value = nn.Linear(dim, kv_heads * self.head_dim, bias=False)
        self.output = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            project(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        dtype = self.query.weight.dtype
        retrieved = F.scaled_dot_product_attention(
            rotary(query, dtype), rotary(key, dtype), value, is_causal=True, enable_gqa=self.grouped
        )
        return self.output(retrieved.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """(silu(x W_g) * x W_u) W_d (Shazeer 2020).

    The inner width is 8/3 of `dim`, up to the next multiple of 32.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        inside = -(-8 * dim // (3 * 32)) * 32
        self.gate = nn.Linear(dim, inside, bias=False)
        self.up = nn.Linear(dim, inside, bias=False)
        self.down = nn.Linear(inside, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


def rotary(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Rotary positions: the pair (x_i, x_{i+d/2}) of token n is rotated by n · base^(−2i/d).

    Args:
        x: [batch, heads, tokens, d], d even; token numbers start at 0.
        dtype: of the angles, at least float32; None: that of x.
    """
    half = x.shape[-1] // 2
    dtype = torch.promote_types(x.dtype if dtype is None else dtype, torch.float32)
    pairs = torch.arange(half, device=x.device, dtype=dtype)
    tokens = torch.arange(x.shape[-2], device=x.device, dtype=dtype)
    # a plain product, which autocast leaves in its precision
    angles = tokens[:, None] * ROTARY_BASE ** (-pairs / half)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

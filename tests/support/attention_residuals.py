"""Small transformers with Attention Residuals as others write them, from the formulas, in float64.

Each keeps the residual stream of a plain transformer beside what it computes, and so the definition
of `skip` at hand: a site can hand on y + share · (stream - y).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.foreign_models import Tokens, by_exponentials

WIDTH, WORDS, EPS = 16, 32, 1e-6


class Record:
    """What a pass would hand on without retrievals, and its weights by hand.

    shares: by site how far it hands on the residual stream. by_hand: by site its weights
    [samples, tokens, sources], without a softmax function.
    """

    def __init__(self) -> None:
        self.shares: dict[str, float] = {}
        self.by_hand: dict[str, Tensor] = {}
        self.stream: Tensor | None = None

    def add(self, output: Tensor) -> Tensor:
        if self.stream is not None:
            self.stream = self.stream + output
        return output

    def handed_on(self, site: str, y: Tensor, scores: list[Tensor]) -> Tensor:
        """y, or what the share of the site says. scores: of each source [samples, tokens]."""
        if self.stream is None:  # a layer by itself
            return y
        self.by_hand[site] = by_exponentials(torch.stack(scores, -1), -1)
        return y + self.shares.get(site, 0.0) * (self.stream - y)


def score(query: nn.Linear, norm: nn.Module, x: Tensor) -> Tensor:
    """q · x / rms(x), with the scale of the norm: [samples, tokens]."""
    weight: Any = norm.weight
    return (x * weight / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * query.weight[0]).sum(-1)


class Attention(nn.Module):
    """Causal attention over tokens; returns a tuple, as those of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = Tokens(WIDTH, 2, causal=True)
        self.q_norm = nn.RMSNorm(WIDTH // 2)  # of another width than the layer's

    def forward(self, hidden_states: Tensor, **options: Any) -> tuple[Tensor, None]:
        queries = self.q_norm(hidden_states.unflatten(-1, (2, -1)))
        return self.tokens(queries.flatten(-2)), None


def feedforward() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 24), nn.GELU(), nn.Linear(24, WIDTH))


def norm() -> nn.Module:
    return nn.RMSNorm(WIDTH, eps=EPS)


class LanguageModel(nn.Module):
    """A decoder between an embedding and a linear head."""

    def __init__(self, decoder: nn.Module, record: Record) -> None:
        super().__init__()
        self.embed, self.model, self.record = nn.Embedding(WORDS, WIDTH), decoder, record
        self.head = nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.record.stream = self.embed(tokens)
        try:
            return self.head(self.model(x))
        finally:
            self.record.stream = None


class FlatRetrieval(nn.Module):
    """Kimi K3's: the sums of blocks are [samples · tokens, blocks, dim]."""

    def __init__(self) -> None:
        super().__init__()
        self.pseudo_queries, self.attn_residual_norm = nn.Linear(WIDTH, 1, bias=False), norm()

    def forward(self, hidden_states: Tensor, block_residual: Tensor) -> Tensor:
        flat = hidden_states.view(-1, 1, WIDTH)
        values = torch.cat((block_residual, flat), dim=1)
        logits = self.pseudo_queries(self.attn_residual_norm(values))  # [tokens, sources, 1]
        weights = logits.transpose(1, 2).softmax(-1)  # [tokens, 1, sources]
        return (weights @ values).view_as(hidden_states)


class FlatLayer(nn.Module):
    def __init__(self, name: str, record: Record, *, begins: bool) -> None:
        super().__init__()
        self.name, self.record, self.is_start_of_residual_block = name, record, begins
        self.input_layernorm, self.post_attention_layernorm = norm(), norm()
        self.self_attn, self.mlp = Attention(), feedforward()
        self.pre_attn_residual: nn.Module = FlatRetrieval()
        self.post_attn_residual: nn.Module = FlatRetrieval()

    def forward(self, x: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
        h = x
        if blocks.shape[1]:
            h = handed_on(
                self.record, f"{self.name}.pre_attn_residual", self.pre_attn_residual, x, blocks
            )
        output = self.record.add(self.self_attn(self.input_layernorm(h))[0])
        if self.is_start_of_residual_block:
            blocks, x = torch.cat([blocks, x.view(-1, 1, WIDTH)], 1), output
        else:
            x = x + output
        h = handed_on(
            self.record, f"{self.name}.post_attn_residual", self.post_attn_residual, x, blocks
        )
        return x + self.record.add(self.mlp(self.post_attention_layernorm(h))), blocks


def handed_on(record: Record, site: str, part: nn.Module, x: Tensor, blocks: Tensor) -> Tensor:
    y: Tensor = part(x, blocks)
    if not isinstance(part, FlatRetrieval):
        return y
    sources = [*(b.view_as(x) for b in blocks.unbind(1)), x]
    scores = [score(part.pseudo_queries, part.attn_residual_norm, s) for s in sources]
    return record.handed_on(site, y, scores)


class FlatDecoder(nn.Module):
    """Kimi K3's decoder: five layers in blocks of two."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            FlatLayer(f"model.layers.{n}", record, begins=n % 2 == 0) for n in range(5)
        )
        self.output_attn_residual: nn.Module = FlatRetrieval()
        self.norm, self.record = norm(), record

    def forward(self, x: Tensor) -> Tensor:
        blocks = x.new_empty(x.shape[0] * x.shape[1], 0, WIDTH)
        for layer in self.layers:
            x, blocks = layer(x, blocks)
        site = "model.output_attn_residual"
        return self.norm(handed_on(self.record, site, self.output_attn_residual, x, blocks))


class OpenLayer(nn.Module):
    """A layer of an open implementation; `biased`: with a bias of the running state."""

    def __init__(self, number: int, record: Record, mode: str, *, biased: bool) -> None:
        super().__init__()
        self.name, self.record, self.attnres_mode = f"model.layers.{number}", record, mode
        self.gate_type, self.number, self.biased = "bias", number, biased
        self.self_attn, self.mlp = Attention(), feedforward()
        self.input_layernorm, self.post_attention_layernorm = norm(), norm()
        for title in ("attn_res", "mlp_res"):
            setattr(self, f"{title}_proj", nn.Linear(WIDTH, 1, bias=False))
            setattr(self, f"{title}_norm", norm())
            if biased:
                setattr(self, f"{title}_bias", nn.Parameter(torch.ones(())))

    @property
    def is_new_block_start(self) -> bool:
        return self.number % 2 == 0 and (self.number > 0 or not self.biased)

    @property
    def is_block_boundary(self) -> bool:
        return self.number % 2 == (1 if self.biased else 0)

    def forward(
        self, blocks: list[Tensor], partial_block: Tensor, **options: Any
    ) -> tuple[list[Tensor], Tensor]:
        x, step = partial_block, getattr(self, f"with_{self.attnres_mode}")
        return step(blocks, x)

    def attend(self, h: Tensor) -> Tensor:
        return self.record.add(self.self_attn(hidden_states=self.input_layernorm(h))[0])

    def feed(self, h: Tensor) -> Tensor:
        return self.record.add(self.mlp(self.post_attention_layernorm(h)))

    def replaced(self, title: str, blocks: list[Tensor], x: Tensor) -> Tensor:
        return retrieved(self, f"{self.name}.{title}", title, [*blocks, x])

    def added(self, title: str, blocks: list[Tensor], x: Tensor) -> Tensor:
        return retrieved(self, f"{self.name}.{title}", title, blocks, x) if blocks else x

    def with_block(self, blocks: list[Tensor], x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Sums that begin anew with each block."""
        h = self.replaced("attn_res", blocks, x)
        if self.is_new_block_start:
            blocks, x = [*blocks, x], torch.zeros_like(x)
        x = x + self.attend(h)
        return blocks, x + self.feed(self.replaced("mlp_res", blocks, x))

    def with_full(self, blocks: list[Tensor], x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Every sublayer's output."""
        attended = self.attend(self.replaced("attn_res", blocks, x))
        blocks = [*blocks, x]
        fed = self.feed(self.replaced("mlp_res", blocks, attended))
        return [*blocks, attended], fed

    def with_delta(self, blocks: list[Tensor], x: Tensor) -> tuple[list[Tensor], Tensor]:
        """The residual stream, and sublayers' outputs besides."""
        attended = self.attend(self.added("attn_res", blocks, x))
        blocks = [*(blocks or [x]), attended]
        fed = self.feed(self.added("mlp_res", blocks, x + attended))
        return [*blocks, fed], x + attended + fed

    def with_delta_block(self, blocks: list[Tensor], x: Tensor) -> tuple[list[Tensor], Tensor]:
        """The residual stream, and what blocks added to it besides."""
        attended = self.attend(self.added("attn_res", blocks, x))
        if not self.biased and self.is_block_boundary:
            blocks = [*blocks, x - blocks[-1] if blocks else x]
        x = x + attended
        return blocks, x + self.feed(self.added("mlp_res", blocks, x))


class Cumulative(OpenLayer):
    """The running state is never reset; it is recorded at the end of a block, or every time."""

    def with_block(self, blocks: list[Tensor], x: Tensor) -> tuple[list[Tensor], Tensor]:
        x = x + self.attend(self.replaced("attn_res", blocks, x))
        x = x + self.feed(self.replaced("mlp_res", blocks, x))
        return ([*blocks, x] if self.is_block_boundary else blocks), x

    def with_full(self, blocks: list[Tensor], x: Tensor) -> tuple[list[Tensor], Tensor]:
        x = x + self.attend(self.replaced("attn_res", blocks, x))
        blocks = [*blocks, x]
        x = x + self.feed(self.replaced("mlp_res", blocks, x))
        return [*blocks, x], x


def retrieved(
    owner: Any, site: str, title: str, sources: list[Tensor], running: Tensor | None = None
) -> Tensor:
    """Σ w x over the sources, plus the running state where it is given."""
    query, keys = getattr(owner, f"{title}_proj"), getattr(owner, f"{title}_norm")
    values = torch.stack(sources)
    logits = torch.einsum("d, n b t d -> n b t", query.weight.view(-1), keys(values))
    scores = [score(query, keys, x) for x in sources]
    bias = getattr(owner, f"{title}_bias", None)
    if bias is not None and running is None:
        logits[-1] = logits[-1] + bias
        scores[-1] = scores[-1] + bias
    y = torch.einsum("n b t, n b t d -> b t d", logits.softmax(0), values)
    return owner.record.handed_on(site, y if running is None else running + y, scores)


class OpenDecoder(nn.Module):
    """Four layers; a block has two of them."""

    def __init__(
        self, record: Record, mode: str, *, biased: bool, layer: type[OpenLayer] = OpenLayer
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer(n, record, mode, biased=biased) for n in range(4))
        self.norm, self.record, self.biased, self.mode = norm(), record, biased, mode
        self.resets = layer is OpenLayer and mode in ("block", "full")
        if self.resets:
            self.final_res_proj, self.final_res_norm = nn.Linear(WIDTH, 1, bias=False), norm()
            if biased:
                self.final_res_bias = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        blocks, begun = [x] if self.biased else [], x
        for layer in self.layers:
            blocks, x = layer(blocks=blocks, partial_block=x)
            if self.mode == "delta_block" and self.biased and layer.is_block_boundary:
                blocks, begun = [*blocks, x - begun], x
        if self.resets:
            x = retrieved(self, "model.final_res", "final_res", [*blocks, x])
        return self.norm(x)


class Integrated(nn.Module):
    """x-transformers with layer integration, in attention and feedforward layers."""

    def __init__(self, **settings: Any) -> None:
        from x_transformers import Decoder, TransformerWrapper

        super().__init__()
        self.record = Record()
        self.model = TransformerWrapper(
            num_tokens=WORDS, max_seq_len=16,
            attn_layers=Decoder(dim=WIDTH, depth=3, heads=2, attn_dim_head=8, **settings),
        )  # fmt: skip

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens)


@contextmanager
def handing_on(model: Any, shares: Mapping[str, float]) -> Iterator[None]:
    """A block in which the sites hand on y + share · (residual stream - y)."""
    if not isinstance(model, Integrated):
        model.record.shares = dict(shares)
        try:
            yield
        finally:
            model.record.shares = {}
        return
    hooks = [
        model.get_submodule(site).register_forward_hook(
            lambda _, inputs, y, share=share: y + share * (inputs[0] - y)
        )
        for site, share in shares.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def opened(mode: str, *, biased: bool, layer: type[OpenLayer] = OpenLayer) -> nn.Module:
    record = Record()
    return LanguageModel(OpenDecoder(record, mode, biased=biased, layer=layer), record)


def kimi() -> nn.Module:
    record = Record()
    return LanguageModel(FlatDecoder(record), record)


LORA = {"attn_aggregated_residual_kwargs": {"lora_rank": 4}}
NETWORKS = {
    "kimi_k3": kimi,
    "block": lambda: opened("block", biased=False),
    "block, biased": lambda: opened("block", biased=True),
    "block, cumulative": lambda: opened("block", biased=True, layer=Cumulative),
    "full": lambda: opened("full", biased=False),
    "full, cumulative": lambda: opened("full", biased=True, layer=Cumulative),
    "delta": lambda: opened("delta", biased=False),
    "delta, biased": lambda: opened("delta", biased=True),
    "delta_block": lambda: opened("delta_block", biased=False),
    "delta_block, biased": lambda: opened("delta_block", biased=True),
    "LIMe": lambda: Integrated(integrate_layers=True),
    "aggregated": lambda: Integrated(attn_aggregated_residuals=True, **LORA),
    "aggregated, three views": lambda: Integrated(
        attn_aggregated_residuals=True, qkv_receive_diff_residuals=True, **LORA
    ),
}


def network(name: str, seed: int = 0) -> Any:
    """One of NETWORKS in float64 and eval mode, its weights far from their start."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = NETWORKS[name]().double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.4)
    return model


def words(samples: int = 3, length: int = 6, seed: int = 1) -> Tensor:
    """Random token ids, int64 [samples, length]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, WORDS, (samples, length), generator=generator)

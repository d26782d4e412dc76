"""Networks that mix earlier layers by static or signed weights, in float64."""

from typing import Any

import torch
from torch import Tensor, nn

DIM, CLASSES = 8, 3


def block(dim: int = DIM) -> nn.Module:
    return nn.Sequential(
        nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)
    )


def random_parameters(model: nn.Module, seed: int = 0, std: float = 0.4) -> Any:
    """The model in float64 and eval mode, with parameters of one size, so that none is at rest."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = (
            torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * std
        )
    return model.double().eval()


def batch(samples: int = 6, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 5, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(CLASSES, (samples,), generator=generator)


class Averages(nn.Module):
    """Depth-weighted averages as DenseFormer's module is called, written from its formula."""

    def __init__(self, n_blocks: int, dilation: int = 1, period: int = 1) -> None:
        super().__init__()
        self.n_blocks, self.dilation, self.period = n_blocks, dilation, period
        self.alphas = nn.ModuleList(
            nn.Linear((i + 1 + dilation) // dilation, 1, bias=False)
            if (i + 1) % period == 0
            else None  # type: ignore[misc]
            for i in range(n_blocks)
        )
        self.seen: list[Tensor] = []

    def init_accumulators(self, x: Tensor) -> None:
        self.seen = [x]

    def forward(self, x: Tensor, block_idx: int) -> Tensor:
        self.seen.append(x)
        alpha = self.alphas[block_idx]
        if alpha is None:
            return x
        sources = self.seen[(block_idx + 1) % self.dilation :: self.dilation]
        terms = [a * s for a, s in zip(alpha.weight[0], sources, strict=True)]  # type: ignore[index]
        return torch.stack(terms).sum(0)


class Denseformer(nn.Module):
    """Blocks, and after each of them an average over the embedding and all blocks so far."""

    def __init__(self, blocks: int = 4, dilation: int = 1, period: int = 1) -> None:
        super().__init__()
        self.embedding = nn.Linear(4, DIM)
        self.blocks = nn.ModuleList(block() for _ in range(blocks))
        self.dwa = Averages(blocks, dilation, period)
        self.head = nn.Linear(DIM, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        self.dwa.init_accumulators(x)
        for i, each in enumerate(self.blocks):
            x = self.dwa(x + each(x), block_idx=i)
        return self.head(x.mean(1))


def denseformer(**settings: int) -> Any:
    return random_parameters(Denseformer(**settings))


class Streams(nn.Module):
    """A residual network whose branches are joined by hyper-connections of the package."""

    def __init__(self, layers: int = 3, streams: int = 3, *, inside: bool = True) -> None:
        super().__init__()
        from hyper_connections import HyperConnections

        init, self.expand, self.reduce = (
            HyperConnections.get_init_and_expand_reduce_stream_functions(streams, dim=DIM)
        )
        self.embedding = nn.Linear(4, DIM)
        branches = [block() for _ in range(layers)]
        self.layers = nn.ModuleList(
            init(branch=branch if inside else None, layer_index=i)
            for i, branch in enumerate(branches)
        )
        self.branches = nn.ModuleList([] if inside else branches)
        self.head = nn.Linear(DIM, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.expand(self.embedding(x))
        for i, layer in enumerate(self.layers):
            if len(self.branches):
                read, add = layer(x)
                x = add(self.branches[i](read))
            else:
                x = layer(x)
        return self.head(self.reduce(x).mean(1))


def streams(**settings: Any) -> Any:
    return random_parameters(Streams(**settings))


def audio_classifier(name: str = "Wav2Vec2", task: str = "SequenceClassification") -> Any:
    """An audio encoder of transformers with a learned layer sum, small."""
    import transformers

    config = getattr(transformers, f"{name}Config")(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24,
        conv_dim=(8, 8), conv_kernel=(10, 3), conv_stride=(5, 2), num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, classifier_proj_size=8, num_labels=CLASSES,
        use_weighted_layer_sum=True, vocab_size=8,
    )  # fmt: skip
    return random_parameters(getattr(transformers, f"{name}For{task}")(config))


def sound(samples: int = 6, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    waves = torch.randn(samples, 200, generator=generator, dtype=torch.float64)
    return waves, torch.randint(CLASSES, (samples,), generator=generator)

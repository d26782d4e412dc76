"""Ways to write a retrieval from earlier layers; each gives weights [N, sources] and their sum."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.foreign_models import by_exponentials

Read = Callable[[Tensor, Sequence[Tensor]], Tensor]


def scores(query: Tensor, sources: Sequence[Tensor]) -> Tensor:
    """query: [N, d]; sources: [N, d] each. Returns [N, sources]."""
    return (torch.stack(tuple(sources), 1) @ query[..., None]).squeeze(-1)


def weighted(weights: Tensor, sources: Sequence[Tensor]) -> Tensor:
    return (weights[..., None] * torch.stack(tuple(sources), 1)).sum(1)


def log_then_exp(query: Tensor, sources: Sequence[Tensor]) -> Tensor:
    return weighted(F.log_softmax(scores(query, sources), dim=-1).exp(), sources)


def minus_logsumexp(query: Tensor, sources: Sequence[Tensor]) -> Tensor:
    logits = scores(query, sources)
    return weighted((logits - logits.logsumexp(-1, keepdim=True)).exp(), sources)


def exp_by_sum(query: Tensor, sources: Sequence[Tensor]) -> Tensor:
    logits = scores(query, sources)
    powers = torch.exp(logits - logits.amax(-1, keepdim=True))
    return weighted(powers / (powers.sum(-1, keepdim=True) + 1e-12), sources)


def in_place(query: Tensor, sources: Sequence[Tensor]) -> Tensor:
    powers = scores(query, sources).exp_()
    powers /= powers.sum(1).unsqueeze(1)
    return weighted(powers, sources)


def exp_times_reciprocal(query: Tensor, sources: Sequence[Tensor]) -> Tensor:
    powers = scores(query, sources).exp()
    return weighted(powers * (1 / powers.sum(dim=(1,), keepdim=True)), sources)


def normalized(query: Tensor, sources: Sequence[Tensor]) -> Tensor:
    return weighted(F.normalize(scores(query, sources).exp(), p=1, dim=1), sources)


def scores_one_by_one(query: Tensor, sources: Sequence[Tensor]) -> Tensor:
    logits = torch.stack([(query * source).sum(-1) for source in sources], -1)
    return weighted(logits.softmax(-1), sources)


def all_one_by_one(query: Tensor, sources: Sequence[Tensor]) -> Tensor:
    logits = torch.cat([(query * source).sum(-1, keepdim=True) for source in sources], -1)
    weights = logits.softmax(-1)
    return sum((weights[:, k, None] * s for k, s in enumerate(sources)), torch.zeros(()))


def concatenated_again(query: Tensor, sources: Sequence[Tensor]) -> Tensor:
    stacked = torch.cat([source.unsqueeze(1) for source in sources], dim=1)
    weights = torch.softmax(torch.einsum("nd,ntd->nt", query, stacked), 1)
    return torch.einsum("nt,ntd->nd", weights, stacked)


def in_a_buffer(query: Tensor, sources: Sequence[Tensor]) -> Tensor:
    buffer = torch.zeros(len(query), len(sources) + 2, query.shape[1])
    for k, source in enumerate(sources):
        if k % 2:
            buffer[:, k] = source
        else:
            buffer[:, k].copy_(source)
    filled = buffer[:, : len(sources)]
    weights = torch.einsum("ntd,nd->nt", filled, query).softmax(1)
    return torch.einsum("nt,ntd->nd", weights, filled)


WAYS: tuple[Read, ...] = (
    log_then_exp, minus_logsumexp, exp_by_sum, in_place, exp_times_reciprocal, normalized,
    scores_one_by_one, all_one_by_one, concatenated_again, in_a_buffer,
)  # fmt: skip


class Stack(nn.Module):
    """Four layers; every one adds what it reads from the outputs so far to its own."""

    def __init__(self, read: Read, depth: int = 4, width: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(read, width) for _ in range(depth))

    @property
    def by_hand(self) -> list[Tensor]:
        return [layer.by_hand for layer in self.layers]  # type: ignore[misc]

    def forward(self, x: Tensor) -> Tensor:
        sources = [x]
        for layer in self.layers:
            sources.append(layer(sources[-1], sources))
        return sources[-1]


class Layer(nn.Module):
    """by_hand: the weights [N, sources] of the last pass."""

    def __init__(self, read: Read, width: int) -> None:
        super().__init__()
        self.read, self.query, self.mix = read, nn.Linear(width, width), nn.Linear(width, width)
        self.by_hand = torch.zeros(0)

    def forward(self, x: Tensor, sources: Sequence[Tensor]) -> Tensor:
        query = self.query(x)
        with torch._C.DisableTorchFunction():
            self.by_hand = by_exponentials(scores(query, sources), -1)
        return torch.tanh(self.mix(x + self.read(query, sources)))

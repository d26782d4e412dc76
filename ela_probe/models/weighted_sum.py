"""The two operations of layer attention: sums weighted by row, and logits of a query."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ela_probe.models.hand_written import by_hand, gradients_of, plain_backward
from ela_probe.models.rows import Rows


def plain_sum(weights: Tensor, sources: Sequence[Tensor], rows: Rows) -> Tensor:
    """Σ_s w(s) V_s, in the precision of the sources.

    Args:
        weights: [*rows, sources].
        sources: tensors of the rows' shape.

    Returns: a tensor of the rows' shape.
    """
    weights = weights.to(sources[0].dtype)
    if rows.heads is None:
        parts, factors = list(sources), weights[..., None, :]
    else:
        parts = [source.unflatten(1, (rows.heads, -1)) for source in sources]
        factors = weights[:, :, None, None, None]
    total = parts[0] * factors[..., 0]
    for index, part in enumerate(parts[1:], start=1):
        total = torch.addcmul(total, part, factors[..., index])
    return total if rows.heads is None else total.flatten(1, 2)


def plain_dot(query: Tensor, sources: Sequence[Tensor]) -> Tensor:
    """q · k_s for every source: [*rows, numbers] each, to [*rows, sources]."""
    return torch.stack([(query * source).sum(dim=-1) for source in sources], dim=-1)


def weighted_sum(weights: Tensor, sources: Sequence[Tensor], rows: Rows) -> Tensor:
    """`plain_sum` over sources that lie in no block, where possible differentiated by hand.

    Nothing but the weights and the sources themselves is kept for the backward pass.
    """
    if not by_hand(sources[0]):
        return plain_sum(weights, sources, rows)
    result: Tensor = _WeightedSum.apply(weights, rows, *sources)
    return result


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, rows: Rows, *sources: Tensor) -> Tensor:
        flat = weights.reshape(rows.count, len(sources)).to(sources[0].dtype)
        ctx.rows = rows
        ctx.save_for_backward(weights, *sources)
        total = rows.flat(sources[0]) * flat[:, :1]
        for index, source in enumerate(sources[1:], start=1):
            total.addcmul_(rows.flat(source), flat[:, index : index + 1])
        return rows.join(total)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weights, *sources = ctx.saved_tensors
        rows: Rows = ctx.rows
        if plain_backward():
            first, *others = gradients_of(
                lambda w, *v: plain_sum(w, v, rows), (weights, *sources), grad
            )
            return first, None, *others
        flat = weights.reshape(rows.count, len(sources)).to(sources[0].dtype)
        grad = rows.flat(grad)
        by_weight = [
            torch.bmm(grad[:, None], rows.flat(source)[:, :, None]).flatten() for source in sources
        ]
        by_source = [rows.join(grad * weight[:, None]) for weight in flat.unbind(dim=1)]
        return torch.stack(by_weight, dim=1).view(weights.shape), None, *by_source

"""Divergences of neighbours seen by class and by sample, and what is known of the samples."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ela_probe.analysis.exact_sums import exact, value_of
from ela_probe.analysis.packing import folded

# Sums are kept for labels below this; of data with more classes there is no view by class.
MOST_CLASSES = 1000
# How many samples are kept that are farthest from a stage's mean.
UNUSUAL = 8


@dataclass(frozen=True)
class Known:
    """What is known of the N samples of a batch beside their inputs.

    labels: [N] int64, the class of each, negative for none. positions: [N] int64, where each is in
    the data set. None: unknown.
    """

    labels: Tensor | None = None
    positions: Tensor | None = None

    def of(self, rows: Tensor | slice, samples: int) -> "Known":
        """Of the samples `rows` of a batch of `samples`; nothing where it is another batch's."""

        def chosen(values: Tensor | None) -> Tensor | None:
            if values is None or len(values) != samples:
                return None
            return values.to(rows.device)[rows] if isinstance(rows, Tensor) else values[rows]

        return Known(chosen(self.labels), chosen(self.positions))


def one_class_each(labels: Any, samples: int) -> Tensor | None:
    """The labels as [samples] int64; None unless they are integers, one for each sample."""
    if isinstance(labels, list | tuple) and labels:
        if not all(isinstance(value, int) for value in labels):
            return None
        labels = torch.tensor(labels)
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        return None
    if labels.shape not in ((samples,), (samples, 1)):
        return None
    return labels.detach().reshape(samples).long()


def class_sums(adjacent: Tensor, labels: Tensor, into: Tensor, counts: Tensor) -> None:
    """Add the divergences of each sample to those of its class, in place and exactly.

    Args:
        adjacent: [T − 1, samples] in nats. labels: [samples].
        into: exact sums [2, MOST_CLASSES + 2, T]. counts: [MOST_CLASSES + 2]. The last row but one
            is for labels that are too large, the last one for negative labels.
    """
    row = labels.to(adjacent.device).clamp(max=MOST_CLASSES)
    row = row.masked_fill(row < 0, MOST_CLASSES + 1)
    counts.index_add_(0, row, torch.ones_like(row))
    into[..., 1:].index_add_(1, row, exact(adjacent).transpose(1, 2))


def class_means(sums: Tensor, counts: Tensor) -> dict[str, Tensor]:
    """class_kl [C, T] and class_counts [C] from what `class_sums` added up.

    C − 1 is the last class that occurs; C is 0 where a label was too large.
    """
    found = counts[:MOST_CLASSES].nonzero().flatten()
    classes = 0 if counts[MOST_CLASSES] or not len(found) else int(found[-1]) + 1
    counts = counts[:classes].clone()
    return {
        "class_kl": value_of(sums[:, :classes]) / counts.clamp_min(1)[:, None],
        "class_counts": counts,
    }


def farthest(adjacent: Tensor, positions: Tensor) -> Tensor:
    """The samples of the largest and of the smallest mean divergence, [2, UNUSUAL, 2] float64.

    Of each its signed mean and its position: the mean of a large one, minus that of a small one,
    so that both lists hold the largest numbers. Empty places hold −inf and −1.

    Args:
        adjacent: [T − 1, samples] in nats. positions: [samples].
    """
    means = folded(adjacent.clone()) / len(adjacent)
    pairs = torch.stack([means, positions.to(means)], dim=-1)
    both = torch.stack([pairs, pairs * pairs.new_tensor([-1.0, 1.0])])
    return _largest(torch.cat([nobody().to(both), both], dim=1))


def nobody() -> Tensor:
    """What `farthest` returns without samples."""
    return torch.tensor([-torch.inf, -1.0], dtype=torch.float64).expand(2, UNUSUAL, 2).clone()


def farthest_of_all(lists: Tensor) -> Tensor:
    """Merge what `farthest` returned, [n, 2, UNUSUAL, 2] to [2, UNUSUAL, 2], in any order."""
    return _largest(lists.transpose(0, 1).flatten(1, 2))


def _largest(pairs: Tensor) -> Tensor:
    """Of each list the UNUSUAL pairs with the largest first number, [2, n, 2] to [2, UNUSUAL, 2].

    Of equal numbers that of the smaller position comes first.
    """
    for column, falling in ((1, False), (0, True)):
        order = pairs[..., column].argsort(dim=1, descending=falling, stable=True)
        pairs = pairs.gather(1, order[..., None].expand_as(pairs))
    return pairs[:, :UNUSUAL]


def unusual(lists: Tensor, mean: float) -> dict[str, Tensor]:
    """The at most UNUSUAL samples whose mean divergence is farthest from the stage's mean.

    Args:
        lists: what `farthest` returned. mean: of the stage, in nats.

    Returns: unusual_positions, int64, and unusual_kl, in nats: the farthest first, of equally far
        ones the smaller position.
    """
    found = {
        int(position): sign * value
        for sign, side in zip((1, -1), lists.tolist(), strict=True)
        for value, position in side
        if position >= 0
    }
    order = sorted(found, key=lambda p: (-abs(found[p] - mean), p))[:UNUSUAL]
    return {
        "unusual_positions": torch.tensor(order, dtype=torch.int64),
        "unusual_kl": torch.tensor([found[p] for p in order], dtype=torch.float64),
    }


class Positions:
    """Where the samples of one batch after another are in the data set.

    Args:
        given: [samples] of each batch; None: they are counted from 0.
    """

    def __init__(self, given: Iterable[Tensor] | None = None) -> None:
        self._given = None if given is None else iter(given)
        self._next = 0

    def of_next(self, samples: int) -> Tensor | None:
        """[samples] of the next batch; None where nothing is given for it."""
        if self._given is not None:
            return next(self._given, None)
        self._next += samples
        return torch.arange(self._next - samples, self._next)

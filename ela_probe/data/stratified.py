"""Seeded subsets and the validation split, with the classes in proportion."""

import numpy as np
import torch
from torch import Tensor

from ela_probe.errors import DataError


def stratified_order(labels: Tensor, *, seed: int) -> Tensor:
    """A seeded order of the samples in which every prefix holds the classes in proportion.

    Args:
        labels: class of each sample, int64 (N,).
        seed: seed of the shuffle within each class and of the order of ties.

    Returns:
        Indices, int64 (N,): a permutation of 0..N-1.
    """
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(labels))
    by_class = labels.numpy()[shuffled]
    rank = np.empty(len(labels))  # relative rank of each sample within its class, in (0, 1)
    for label in np.unique(by_class):
        (members,) = np.nonzero(by_class == label)
        rank[members] = (np.arange(len(members)) + 0.5) / len(members)
    return torch.from_numpy(shuffled[np.argsort(rank, kind="stable")])


def train_and_val_indices(
    labels: Tensor, val_labels: Tensor | None, *, limit: int | None, val_fraction: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Sorted indices of the training and of the validation images, int64.

    The limit applies first: `limit` images in training and validation together. A source with a
    validation split (`val_labels` is not None) keeps all training images; its validation split is
    used whole, or not at all where `val_fraction` is 0.

    Raises:
        DataError: validation would leave no training image.
    """
    chosen = stratified_order(labels, seed=seed)[:limit]
    if val_labels is not None:
        val = torch.arange(len(val_labels) if val_fraction else 0)
        return chosen.sort().values, val
    count = max(1, round(len(chosen) * val_fraction)) if val_fraction else 0
    if count >= len(chosen):
        raise DataError(
            f"{len(chosen)} training images leave none for training after {count} for validation; "
            "choose a smaller validation fraction, or more images"
        )
    # seed + 1: with the same seed, validation would be the first images of the limited subset
    order = chosen[stratified_order(labels[chosen], seed=seed + 1)]
    return order[count:].sort().values, order[:count].sort().values

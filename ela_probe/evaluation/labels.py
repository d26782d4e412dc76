"""Class labels as people store them: checked in the type that they have, then int64."""

from typing import Any

import torch
from torch import Tensor

from ela_probe.errors import DataError

IGNORED = -100
"""Labels of this value count neither in the loss nor in the accuracy (PyTorch's ignore_index)."""


def class_labels(labels: Any, logits: Tensor) -> Tensor | None:
    """The labels as classes of these logits; None if they are none (targets of another task).

    Args:
        labels: of any integer type or bool, shape (*L) or (*L, 1); or one-hot rows, shape (*L, K);
            or a list of N integers.
        logits: (*L, K), L for example (N,) or (N, tokens).

    Returns: int64 of shape (*L), each 0 to K - 1 or IGNORED.

    Raises:
        DataError: a label is negative, other than IGNORED, or beyond the classes.
    """
    if isinstance(labels, list | tuple) and labels:
        if not all(isinstance(value, int) or _is_integer_scalar(value) for value in labels):
            return None
        labels = torch.stack([torch.as_tensor(value) for value in labels])
    if not isinstance(labels, Tensor) or logits.ndim < 2:
        return None
    shape, classes = logits.shape[:-1], logits.shape[-1]
    if labels.shape == logits.shape and classes > 1:
        return _from_one_hot(labels)
    if labels.shape == (*shape, 1):
        labels = labels.squeeze(-1)
    if labels.shape != shape or labels.is_floating_point() or labels.is_complex():
        return None
    return _checked(labels, classes)


def _is_integer_scalar(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 0 and not value.is_floating_point()


def _from_one_hot(labels: Tensor) -> Tensor | None:
    """The position of the 1 in each row; None if a row holds anything but one 1 and zeros."""
    rows = labels if labels.is_floating_point() else labels.to(torch.int64)
    ones = rows == 1
    one_hot = (ones | (rows == 0)).all() & (ones.sum(-1) == 1).all()
    return ones.int().argmax(-1) if bool(one_hot) else None


def _checked(labels: Tensor, classes: int) -> Tensor:
    # Every integer type but uint64 fits into int64. Large values of uint64 would become negative.
    unsigned = labels.dtype == torch.uint64
    wide = labels.view(torch.int64) if unsigned else labels.to(torch.int64)
    wrong = (wide < 0) | (wide >= classes)
    if not unsigned:
        wrong &= wide != IGNORED
    if not bool(wrong.any()):
        return wide
    first = int(wide[wrong][0])
    if unsigned and first < 0:
        first += 2**64
    if first < 0:
        raise DataError(
            f"the data has label {first}; expected 0 to {classes - 1}, or {IGNORED} for samples "
            "that count neither in the loss nor in the accuracy: change the labels"
        )
    raise DataError(
        f"the data has label {first}, the model only {classes} classes (0 to {classes - 1}): "
        "evaluate the model on the data that it was trained for"
    )

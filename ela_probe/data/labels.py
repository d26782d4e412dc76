"""Labels as people store them, checked and converted to class indices.

| labels | outcome |
|---|---|
| integers (N,) of any type, or (N, 1) | accepted |
| booleans | accepted: False is class 0, True class 1 |
| floats that are whole numbers | accepted |
| one-hot rows (N, K), K > 1 | accepted: the position of the 1 |
| negative, or beyond the class list | refused |
| fractions, NaN, text, rows with several ones or none | refused |
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ela_probe.errors import DataError

MAX_CLASSES = 2**20  # a larger label is an identifier, not a class

Array = npt.NDArray[Any]


def class_indices(labels: Array, *, name: str, num_classes: int | None = None) -> Tensor:
    """Labels as class indices.

    The values are checked in their stored type, before any cast: a uint64 near 2^64 does not
    become a negative number.

    Args:
        labels: see the table above.
        name: how an error message refers to the labels.
        num_classes: K, when the classes are known.

    Returns:
        int64 (N,), from 0 to K-1.

    Raises:
        DataError: the labels are refused. The message names the first wrong one.
    """
    if labels.dtype.kind not in "biuf":
        raise DataError(
            f"{name} are {labels.dtype}, expected integers; number the classes from 0 (their "
            "names go into an array 'classes')"
        )
    if labels.ndim == 2 and labels.shape[1] > 1:
        values = _one_hot_positions(labels, name)
    elif labels.ndim == 1 or (labels.ndim == 2 and labels.shape[1] == 1):
        values = labels.reshape(-1)
    else:
        raise DataError(
            f"{name} have shape {labels.shape}, expected (N,), (N, 1) or one-hot (N, K)"
        )
    if values.dtype.kind == "f":
        values = values.astype(np.float64)  # float16 has no number above 65504
        _refuse(~(np.isfinite(values) & (values == np.floor(values))), values, name, "a fraction")
    if values.dtype.kind != "b":
        _refuse(values < 0, values, name, "negative")
        if num_classes is not None:
            beyond = f"beyond the {num_classes} classes (0 to {num_classes - 1})"
            _refuse(values >= num_classes, values, name, beyond)
        _refuse(values >= MAX_CLASSES, values, name, "too large for a class number")
    return torch.from_numpy(values.astype(np.int64))


def class_names(names: Iterable[object], source: str) -> tuple[str, ...]:
    """Class names as text.

    Raises:
        DataError: a name is not valid UTF-8, so no file could store it.
    """
    checked = []
    for name in names:
        try:
            text = name.decode() if isinstance(name, bytes) else str(name)
            text.encode()
        except UnicodeError:
            raise DataError(
                f"the class name {name!r} of {source} is not valid UTF-8; rename the class"
            ) from None
        checked.append(text)
    return tuple(checked)


def _one_hot_positions(rows: Array, name: str) -> Array:
    """The position of the 1 in each row, int64 (N,)."""
    not_one_hot = ((rows == 1).sum(axis=1) != 1) | ((rows != 0).sum(axis=1) != 1)
    if not_one_hot.any():
        first = int(not_one_hot.argmax())
        raise DataError(
            f"{name} have shape {rows.shape}, and row {first} is not one-hot: it has "
            f"{int(np.count_nonzero(rows[first]))} values other than 0, expected a single 1; "
            "expected one class per image"
        )
    return rows.argmax(axis=1)


def _refuse(wrong: npt.NDArray[np.bool_], values: Array, name: str, reason: str) -> None:
    if not wrong.any():
        return
    first = int(wrong.argmax())
    value = values[first].item()
    unlabelled = " (-100 means no label: leave such images out)" if value == -100 else ""
    raise DataError(
        f"label {value} at position {first} of {name} is {reason}; expected class numbers from 0 "
        f"on{unlabelled}"
    )

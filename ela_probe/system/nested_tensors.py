"""Tensors in nested tuples, lists, dicts, named tuples and data classes."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


def tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors in nested containers, detached, in order; of a PackedSequence its data."""
    for leaf in leaves_of(value):
        yield leaf.data.detach() if isinstance(leaf, PackedSequence) else leaf.detach()


def leaves_of(value: Any) -> "Iterator[Tensor | PackedSequence]":
    """The tensors and packed sequences in nested containers, in order."""
    if isinstance(value, Tensor | PackedSequence):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from leaves_of(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from leaves_of(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from leaves_of(getattr(value, field.name))


def fields_of(value: Any) -> dict[str, Any] | None:
    """The named parts of a dict, data class or named tuple; None for anything else."""
    if isinstance(value, PackedSequence):
        return None
    if isinstance(value, Mapping):
        return {str(name): item for name, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if is_named_tuple(value):
        return dict(zip(value._fields, value, strict=True))
    return None


def is_named_tuple(value: Any) -> bool:
    """Whether this is an instance of a `NamedTuple` class."""
    return isinstance(value, tuple) and hasattr(value, "_fields")


def mapped(inputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nested containers with every tensor changed; lists become tuples.

    Of a PackedSequence the batch sizes stay as they are, on the CPU.
    """

    def changed(value: Any) -> Any:
        if isinstance(value, PackedSequence):
            order = (None if i is None else change(i) for i in value[2:])
            return PackedSequence(change(value.data), value.batch_sizes, *order)
        return change(value) if isinstance(value, Tensor) else value

    return rebuilt(inputs, changed)


def with_first_tensor(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nested tuples with their first tensor changed, and all else as it was.

    A list on the way to it becomes a tuple; a value without a tensor is returned as it is.

    >>> with_first_tensor((torch.ones(1), torch.ones(1)), torch.neg)
    (tensor([-1.]), tensor([1.]))
    """
    if isinstance(value, Tensor):
        return change(value)
    if not isinstance(value, tuple | list):
        return value
    place = next((i for i, item in enumerate(value) if next(leaves_of(item), None) is not None), -1)
    if place < 0:
        return value
    changed = (*value[:place], with_first_tensor(value[place], change), *value[place + 1 :])
    return type(value)(*changed) if is_named_tuple(value) else changed


def as_tensors(inputs: Any) -> Any:
    """The same nested containers with NumPy arrays of numbers as tensors; lists become tuples."""

    def converted(value: Any) -> Any:
        if not (isinstance(value, np.ndarray) and value.dtype.kind in "biufc"):
            return value
        if not (value.flags.writeable and value.flags.c_contiguous and value.dtype.isnative):
            value = np.array(value, dtype=value.dtype.newbyteorder("="), order="C")
        return torch.from_numpy(value)

    return rebuilt(inputs, converted)


def rebuilt(value: Any, change: Callable[[Any], Any]) -> Any:
    """Nested containers of the same kinds with everything in them changed; lists become tuples."""
    if isinstance(value, PackedSequence):
        return change(value)
    if isinstance(value, Mapping):
        return {key: rebuilt(item, change) for key, item in value.items()}
    if is_named_tuple(value):
        return type(value)(*(rebuilt(item, change) for item in value))
    if isinstance(value, tuple | list):
        return tuple(rebuilt(item, change) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        copied = copy.copy(value)
        for field in dataclasses.fields(value):
            item = rebuilt(getattr(value, field.name), change)
            object.__setattr__(copied, field.name, item)  # also where it is frozen
        return copied
    return change(value)

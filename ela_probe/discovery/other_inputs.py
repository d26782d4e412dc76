"""Inputs of other sizes, made of given ones: with one more sample, rolled, shorter and longer."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ela_probe.system.nested_tensors import mapped, tensors_of


def with_one_more_sample(inputs: Any, batch_axis: int) -> Iterator[Any]:
    """The inputs with the first sample once more at the end, in two ways to try in turn.

    In all tensors with as many samples as the first one, or in the first one alone: a mask may be
    as long as the batch by chance.
    """
    first = next((t for t in tensors_of(inputs) if t.dim() > batch_axis), None)
    if first is None:
        return
    samples = first.shape[batch_axis]

    def one_more(tensor: Tensor) -> Tensor:
        if tensor.dim() <= batch_axis or tensor.shape[batch_axis] != samples:
            return tensor
        return _resized(tensor, batch_axis, samples + 1)

    yield mapped(inputs, one_more)
    yield _first_replaced(inputs, one_more(first), batch_axis)


def with_samples_rolled(inputs: Any, batch_axis: int) -> tuple[Any, int] | None:
    """The inputs with the last sample first, and the number of samples; None if that is 1."""
    first = next((t for t in tensors_of(inputs) if t.dim() > batch_axis), None)
    if first is None or first.shape[batch_axis] < 2:
        return None
    samples = first.shape[batch_axis]

    def rolled(tensor: Tensor) -> Tensor:
        found = tensor.dim() > batch_axis and tensor.shape[batch_axis] == samples
        return tensor.roll(1, batch_axis) if found else tensor

    return mapped(inputs, rolled), samples


def with_other_lengths(inputs: Any, batch_axis: int) -> Iterator[Iterator[Any]]:
    """For each length of the first tensor, but the number of samples: inputs to try in turn.

    Axes of equal length change together in a try (the height and width of an image) and each by
    itself in another one. The axes of other tensors that are as long (of a mask) change too, or
    those of the first tensor alone.
    """
    first = next((t for t in tensors_of(inputs) if t.dim() > batch_axis), None)
    if first is None:
        return
    axes = [axis for axis in range(first.dim()) if axis != batch_axis]
    groups = [tuple(a for a in axes if first.shape[a] == first.shape[axis]) for axis in axes]
    for group in dict.fromkeys([(axis,) for axis in axes] + groups):
        yield _of_other_length(inputs, first, group, batch_axis)


def _of_other_length(
    inputs: Any, first: Tensor, axes: tuple[int, ...], batch_axis: int
) -> Iterator[Any]:
    """The inputs with these axes of the first tensor shorter, then longer.

    Half as long first, which also changes the number of segments. On an accelerator never longer:
    there an index beyond a table of positions ends the process.
    """
    length, samples = first.shape[axes[0]], first.shape[batch_axis]
    sizes = [length // 2, length - 1]
    if first.device.type == "cpu":
        sizes += [2 * length, length + 1]
    alone = sum(1 for _ in tensors_of(inputs)) == 1

    def changed(size: int, spared: int | None) -> Callable[[Tensor], Tensor]:
        def change(tensor: Tensor) -> Tensor:
            for axis in range(tensor.dim()):
                same = tensor.shape[axis] == length
                if same and not (axis == spared and tensor.shape[axis] == samples):
                    tensor = _resized(tensor, axis, size)
            return tensor

        return change

    def first_of(size: int) -> Tensor:
        resized = first
        for axis in axes:
            resized = _resized(resized, axis, size)
        return resized

    for size in dict.fromkeys(size for size in sizes if size > 0 and length):
        if not alone:
            for spared in (batch_axis, None):
                others = mapped(inputs, changed(size, spared))
                yield _first_replaced(others, first_of(size), batch_axis)
        yield _first_replaced(inputs, first_of(size), batch_axis)


def _resized(tensor: Tensor, axis: int, size: int) -> Tensor:
    """The tensor cut to a size along an axis, or repeated from its start up to that size."""
    index = torch.arange(size, device=tensor.device) % tensor.shape[axis]
    return tensor.index_select(axis, index)


def _first_replaced(inputs: Any, new: Tensor, batch_axis: int) -> Any:
    """The inputs with another tensor in the place of the first one that has a batch axis."""
    done = False

    def once(tensor: Tensor) -> Tensor:
        nonlocal done
        if done or tensor.dim() <= batch_axis:
            return tensor
        done = True
        return new

    return mapped(inputs, once)

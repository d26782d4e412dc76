"""Which axis of the weights of each call runs over the samples."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ela_probe.discovery.calls import Call, Sum
from ela_probe.discovery.observed_pass import observed_pass
from ela_probe.discovery.other_inputs import with_one_more_sample, with_samples_rolled

AnyCall = TypeVar("AnyCall", bound=Call)


def sums_with_batch_axes(
    sums: Sequence[Sum], model: nn.Module, inputs: Any, batch_axis: int
) -> list[Sum]:
    """The same of weighted sums, and of their results; none where nothing shows the latter."""
    for larger in with_one_more_sample(inputs, batch_axis) if sums else ():
        try:
            grown = observed_pass(model, larger).sums
        except Exception:  # it takes this number of samples only
            continue
        if [_kind(found) for found in grown] == [_kind(found) for found in sums]:
            return [_sum_grown_with(b, a) for b, a in zip(sums, grown, strict=True)]
    return []


def _sum_grown_with(before: Sum, after: Sum) -> Sum:
    axes = [i for i, n in enumerate(before.result) if after.result[i] != n]
    values_axis = axes[0] if len(axes) == 1 else None
    return replace(_grown_with(before, after), values_axis=values_axis)


def with_batch_axes(
    calls: Sequence[Call], model: nn.Module, inputs: Any, batch_axis: int
) -> list[Call]:
    """The calls with the axis that grows with one more sample.

    Where the model takes no other number of samples, it is the axis along which the weights roll
    when the samples do. Where that shows none or several, it is a guess, and the call says so.
    """
    for larger in with_one_more_sample(inputs, batch_axis):
        try:
            grown = observed_pass(model, larger).calls
        except Exception:  # it takes this number of samples only
            continue
        if [_kind(call) for call in grown] == [_kind(call) for call in calls]:
            return [_grown_with(before, after) for before, after in zip(calls, grown, strict=True)]
    return _by_rolling(calls, model, inputs, batch_axis)


def _kind(call: Call) -> tuple[Any, ...]:
    return call.module, call.function, call.axis, len(call.shape)


def _grown_with(before: AnyCall, after: AnyCall) -> AnyCall:
    axes = [i for i, n in enumerate(before.shape) if after.shape[i] != n]
    return replace(
        before,
        batch_axis=next((i for i in axes if i != before.axis), None),
        source_follows_batch=before.axis in axes,
    )


def _by_rolling(
    calls: Sequence[Call], model: nn.Module, inputs: Any, batch_axis: int
) -> list[Call]:
    rolled = with_samples_rolled(inputs, batch_axis)
    if rolled is None:
        return [_of_single_sample(call) for call in calls]
    other, samples = rolled
    weights = observed_pass(model, inputs, keep_weights=True).weights
    moved = observed_pass(model, other, keep_weights=True).weights
    axes = [_rolled_axes(weights.get(call.order), moved.get(call.order), samples) for call in calls]
    # A softmax over one source is constant, and rolls along any axis: others of its place tell.
    known = {
        _place(call): found[0] for call, found in zip(calls, axes, strict=True) if len(found) == 1
    }
    result = []
    for call, found in zip(calls, axes, strict=True):
        axis = known.get(_place(call))
        if axis in found:
            follows = axis == call.axis
            axis = None if follows else axis
            result.append(replace(call, batch_axis=axis, source_follows_batch=follows))
        else:
            result.append(replace(call, batch_axis=_guess(call), batch_axis_guessed=True))
    return result


def _place(call: Call) -> tuple[Any, ...]:
    return call.starred_name, call.lines, call.axis, len(call.shape)


def _rolled_axes(before: Tensor | None, after: Tensor | None, samples: int) -> list[int]:
    """The axes along which one tensor is the other one rolled by one."""
    if before is None or after is None or before.shape != after.shape:
        return []
    return [
        axis
        for axis, size in enumerate(before.shape)
        if size == samples and torch.allclose(before.roll(1, axis), after, rtol=1e-4, atol=1e-6)
    ]


def _of_single_sample(call: Call) -> Call:
    """With one sample, always: any axis of length 1 but that of the sources."""
    others = (axis for axis, n in enumerate(call.shape) if n == 1 and axis != call.axis)
    return replace(call, batch_axis=next(others, None))


def _guess(call: Call) -> int | None:
    """The first axis that is not that of the sources."""
    return int(call.axis == 0) if len(call.shape) > 1 else None

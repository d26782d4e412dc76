"""Lists that grow over tokens or time, not over layers: they follow the length of the inputs."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from operator import attrgetter
from typing import Any

from torch import nn

from ela_probe.discovery.calls import Call
from ela_probe.discovery.observed_pass import ObservedPass, observed_pass
from ela_probe.discovery.other_inputs import with_other_lengths
from ela_probe.system.nested_tensors import tensors_of

CHOICES = {"argmax", "multinomial"}  # how a loop that decodes chooses its next token


def reasons_over_time(
    runs: Sequence[Sequence[Call]],
    seen: ObservedPass,
    model: nn.Module,
    inputs: Any,
    batch_axis: int,
    *,
    of_pass: Callable[[ObservedPass], Sequence[Call]] = attrgetter("calls"),
) -> dict[int, str]:
    """Why the calls of some runs are no layer attention, by their order.

    The model runs again on shorter or longer inputs: the number of layers stays, that of tokens
    and steps doesn't. Where it takes no other length, a loop is over time if it has as many steps
    as the inputs are long; and always where it chooses a token at every step.

    Args:
        of_pass: which calls of a pass the runs are of.
    """
    reasons: dict[int, str] = {}
    if not runs:
        return reasons
    others = list(_passes_of_other_lengths(model, inputs, batch_axis))
    for run in runs:
        why = next(
            (
                why
                for other in others
                if (why := _follows_length(run, of_pass(seen), of_pass(other)))
            ),
            None,
        )
        if why is None and _is_loop(run, seen):
            if _chooses(run, seen):
                why = "a token is chosen between the calls: decodes step by step"
            elif not others and _as_long_as(run, inputs, batch_axis):
                why = "as many steps of one loop as the inputs are long: attends over time"
        if why is not None:
            reasons |= {call.order: why for call in run}
    return reasons


def _passes_of_other_lengths(
    model: nn.Module, inputs: Any, batch_axis: int
) -> Iterator[ObservedPass]:
    """A pass for each length that can be changed, where the model takes another one."""
    for tries in with_other_lengths(inputs, batch_axis):
        for other in tries:
            try:
                yield observed_pass(model, other)
            except Exception:
                continue
            break


def _follows_length(run: Sequence[Call], seen: Sequence[Call], other: Sequence[Call]) -> str | None:
    """How a run differs in a pass on inputs of another length; None if it doesn't."""
    places = {_place(call) for call in run}
    before = [call for call in seen if _place(call) in places]
    after = [call for call in other if _place(call) in places]
    if len(before) != len(after):
        return "their number follows the length of the inputs: attends over time"
    orders = {call.order for call in run}
    if any(a.length != b.length for a, b in zip(before, after, strict=True) if a.order in orders):
        return "follows the length of the inputs: attends over tokens"
    return None


def _place(call: Call) -> tuple[Any, ...]:
    return call.module, call.reads, call.readable


def _is_loop(run: Sequence[Call], seen: ObservedPass) -> bool:
    """Whether the last step uses no parameter for the first time, as a further layer would."""
    before, after = run[-2:-1], run[-1].node
    return bool(before) and not any(
        before[0].node < node <= after for node in seen.lineage.first_uses.values()
    )


def _chooses(run: Sequence[Call], seen: ObservedPass) -> bool:
    """Whether what a call reads depends on a choice since the call before."""
    lineage = seen.lineage
    return any(
        lineage.made_by[node] in CHOICES and node > before.node
        for before, after in pairwise(run)
        for node in lineage.ancestors(after.node, before.node)
    )


def _as_long_as(run: Sequence[Call], inputs: Any, batch_axis: int) -> bool:
    """Whether a run has about as many calls as some axis of the inputs is long."""
    lengths = {
        size
        for tensor in tensors_of(inputs)
        for axis, size in enumerate(tensor.shape)
        if axis != batch_axis
    }
    return bool({len(run) - 1, len(run), len(run) + 1, run[-1].length} & lengths)

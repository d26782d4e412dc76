"""Bystanders: attention in a model that is not layer attention, each with the reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ela_probe.discovery.calls import Call, starred
from ela_probe.discovery.observed_pass import Gate


@dataclass(frozen=True)
class Bystander:
    """Attention that is not layer attention: its module, its function, and why it is not."""

    name: str
    what: str
    reason: str


def bystanders(
    calls: Sequence[Call], reasons: Mapping[int, str], gates: Sequence[Gate]
) -> list[Bystander]:
    """One bystander for each place: softmaxes and fused attention in forward order, then gates.

    Calls from modules whose names differ only in their numbers are one place.

    Args:
        reasons: by the order of a call, why it is not layer attention, where that is known.
    """
    groups: dict[tuple[Any, ...], list[Call]] = {}
    for call in calls:
        place = call.starred_name, call.function, call.lines, reasons.get(call.order)
        groups.setdefault(place, []).append(call)
    result = [
        Bystander(_title([c.module for c in group]), group[0].function, _reason(group, place[-1]))
        for place, group in groups.items()
    ]
    by_place: dict[tuple[str, str], list[Gate]] = {}
    for gate in gates:
        by_place.setdefault((starred(gate.module), gate.function), []).append(gate)
    for (_, function), group in by_place.items():
        shape = group[0].shape
        if len(shape) == 4 and shape[1] > 1 and shape[2:] == (1, 1):
            reason = f"gates {shape[1]} channels, no weights over layers"
            result.append(Bystander(_title([g.module for g in group]), function, reason))
    return result


def _title(names: Sequence[str]) -> str:
    """The name of one module, or the starred name of many."""
    return (names[0] if len(set(names)) == 1 else starred(names[0])) or "forward"


def _reason(calls: Sequence[Call], known: str | None) -> str:
    spread = _spread([item.length for item in calls])
    if known is not None:
        return f"{spread}: {known}"
    if any(item.source_follows_batch for item in calls):
        return f"{spread}: attends over the samples of a batch"
    if len({item.length for item in calls}) > 1:
        return f"{spread}: reads no list of earlier outputs that grows from call to call"
    first = calls[0]
    others = [n for i, n in enumerate(first.shape) if i not in (first.axis, first.batch_axis)]
    over = "tokens" if first.length in others else "a fixed number (tokens, classes, experts)"
    return f"{spread}: attends over {over}"


def _spread(lengths: Sequence[int]) -> str:
    few = sorted(set(lengths))
    if len(few) > 1:
        return f"lengths {few[0]} to {few[-1]} in {len(lengths)} calls"
    return f"length {few[0]} in " + (
        f"all {len(lengths)} calls" if len(lengths) > 1 else "its only call"
    )

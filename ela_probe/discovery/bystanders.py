"""Bystanders: attention in a model that is not layer attention, each with the reason."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ela_probe.discovery.growth import Call, grows
from ela_probe.discovery.watch import Firing


@dataclass(frozen=True)
class Bystander:
    """Attention that is not layer attention: its module, its function, and why it is not."""

    name: str
    what: str
    reason: str


def bystanders(calls: Sequence[Call], others: Sequence[Firing]) -> list[Bystander]:
    """One bystander for each place: softmaxes in forward order, then fused attention and gates.

    Calls from modules whose names differ only in their numbers are one place.
    """
    groups: dict[tuple[Any, ...], list[Call]] = {}
    for item in calls:
        groups.setdefault((item.starred_name, item.function, item.lines), []).append(item)
    result = [
        Bystander(_title([item.module for item in group]), group[0].function, _reason(group))
        for group in groups.values()
    ]
    fired: dict[tuple[str, str, str], list[Firing]] = {}
    for firing in others:
        place = starred(firing.modules[-1])
        fired.setdefault((firing.what, place, firing.function), []).append(firing)
    for (what, _, function), firings in sorted(fired.items(), key=lambda item: item[0][0]):
        name = _title([firing.modules[-1] for firing in firings])
        if what == "attention":
            lengths = [firing.length for firing in firings]
            reason = f"{_spread(lengths)}: " + (
                "it grows, but a fused attention shows no weights; write it with a softmax if it "
                "attends over layers"
                if grows(lengths)
                else "attends over tokens"
            )
            result.append(Bystander(name, function, reason))
            continue
        shape = tuple(firings[0].value.shape)
        if len(shape) == 4 and shape[1] > 1 and shape[2:] == (1, 1):
            reason = f"gates {shape[1]} channels, no weights over layers"
            result.append(Bystander(name, function, reason))
    return result


def _title(names: Sequence[str]) -> str:
    """The name of one module, or the starred name of many."""
    return (names[0] if len(set(names)) == 1 else starred(names[0])) or "forward"


def _reason(calls: list[Call]) -> str:
    spread = _spread([item.length for item in calls])
    if any(item.source_follows_batch for item in calls):
        return f"{spread}: attends over the samples of a batch"
    if len({item.length for item in calls}) > 1:
        return f"{spread}: does not grow by layers from call to call"
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


def starred(name: str) -> str:
    """A module's name with `*` in place of each number.

    >>> starred("blocks.3.attn")
    'blocks.*.attn'
    """
    return re.sub(r"\d+", "*", name)

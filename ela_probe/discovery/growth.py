"""Which of the softmax calls of a forward pass retrieve from earlier layers: those that grow.

A stage is a run of like calls whose source axis grows from call to call, by one or by blocks,
never falling, while all other axes stay. Tokens, classes and experts keep their number.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

from ela_probe.sites import Reads

# A site has one more source than the one before, or a block of layers more; not an image more.
LARGEST_BLOCK = 16


@dataclass(frozen=True)
class Call:
    """One softmax call of a forward pass.

    order: its number among all calls. module: the module to read. starred_name: that name with `*`
    for numbers; the caller's name where the module is an nn.Softmax. owner: the class of
    that module. index: the number of this call among those with the same (module, reads).
    batch_axis: None where no axis grows with the batch. source_follows_batch: the softmax runs
    over samples. lines: the places in the code that led to the call, innermost first, up to the
    module; route: up to the whole model.
    """

    order: int
    module: str
    starred_name: str
    owner: str
    function: str
    reads: Reads
    index: int
    axis: int
    shape: tuple[int, ...]
    lines: tuple[Any, ...] = ()
    route: tuple[Any, ...] = ()
    batch_axis: int | None = 0
    source_follows_batch: bool = False

    @property
    def length(self) -> int:
        """The length of the source axis."""
        return self.shape[self.axis]

    @property
    def common(self) -> tuple[Any, ...]:
        """What all calls of a stage have in common."""
        others = self.shape[: self.axis] + self.shape[self.axis + 1 :]
        return self.owner, self.reads, self.axis, self.batch_axis, others


def growing_runs(calls: Sequence[Call]) -> list[list[Call]]:
    """The runs that are stages, in forward order. A call outside them is not layer attention.

    Calls are compared with those from the same place first (same code, same position in the
    model), then with more and more distant ones, for models whose layers are written out one by
    one; the more distant, the more growth it takes.

    Example: three layers, each with attention over 9 tokens and attention over the layers so far.
    The lengths 9, 9, 9 of the first stay; the lengths 1, 2, 3 of the second grow.

    >>> def softmax(order: int, place: str, length: int) -> Call:
    ...     module, starred_name = f"layers.{order // 2}.{place}", f"layers.*.{place}"
    ...     return Call(
    ...         order, module, starred_name, owner="Attention", function="softmax",
    ...         reads="softmax", index=0, axis=2, shape=(8, 4, length), lines=(place,),
    ...     )
    >>> calls = [
    ...     softmax(0, "tokens", 9), softmax(1, "depth", 1),
    ...     softmax(2, "tokens", 9), softmax(3, "depth", 2),
    ...     softmax(4, "tokens", 9), softmax(5, "depth", 3),
    ... ]
    >>> [[(call.module, call.length) for call in run] for run in growing_runs(calls)]
    [[('layers.0.depth', 1), ('layers.1.depth', 2), ('layers.2.depth', 3)]]
    """
    runs: list[list[Call]] = []
    rest = [call for call in calls if not call.source_follows_batch]
    places = (
        (lambda c: (c.starred_name, c.owner, c.reads, c.route), False),
        (lambda c: (c.starred_name, c.owner, c.reads, c.lines), False),
        (lambda c: (c.owner, c.reads, c.lines), True),
        (lambda c: (c.owner, c.reads, c.lines[:1]), True),
        (lambda c: (c.owner, c.reads), True),
    )
    for level, (place, strict) in enumerate(places):
        done: set[int] = set()
        for key in dict.fromkeys(place(call) for call in rest):
            found = _runs([call for call in rest if place(call) == key])
            grown = [run for run in found if grows([c.length for c in run], strict=strict)]
            starts = [run[0].length for run in (*runs, *grown) if place(run[0]) == key]
            for run in found:
                alone = len(run) == 1 and not strict and starts and run[0].length <= min(starts)
                if run in grown or alone:
                    runs.append(run)
                    done.update(call.order for call in run)
                elif level == 0 and len(run) > 1 and run[0].length == run[-1].length:
                    done.update(
                        call.order for call in run
                    )  # of constant length: no layer attention
        rest = [call for call in rest if call.order not in done]
    return sorted(_attached(_merged(runs), rest), key=lambda run: run[0].order)


def grows(lengths: Sequence[int], *, strict: bool = False) -> bool:
    """Whether lengths grow as a list of layers does: they never fall, and their steps are similar.

    strict: require at least three steps of growth.
    """
    steps = [after - before for before, after in pairwise(lengths)]
    grown = [step for step in steps if step]
    if not grown or min(steps) < 0 or max(grown) > LARGEST_BLOCK or (strict and len(grown) < 3):
        return False
    if len(grown) == 1:
        return lengths[0] <= grown[0] + 2
    inner = grown[1:] if len(grown) > 3 else grown  # the first may be another
    if len(inner) > 2 and inner[-1] < min(inner[:-1]):  # the last block may be a partial one
        inner = inner[:-1]
    return max(inner) < 2 * min(inner)


def _runs(calls: Sequence[Call]) -> list[list[Call]]:
    """Calls from one place, cut where their length falls; calls of other shapes are separate."""
    closed: list[list[Call]] = []
    current: dict[tuple[Any, ...], list[Call]] = {}
    for call in calls:
        run = current.get(call.common)
        if run and call.length >= run[-1].length:
            run.append(call)
        else:
            current[call.common] = run = [call]
            closed.append(run)
    return [part for run in closed for part in _without_false_start(run)]


def _without_false_start(run: list[Call]) -> list[list[Call]]:
    """1, 1, 2, 3 is a stage of one site and a stage of three: a new list starts with one source."""
    plateaus = [len(list(group)) for _, group in groupby(call.length for call in run)]
    if run[0].length == 1 and len(plateaus) > 2 and plateaus[0] > 1 and set(plateaus[1:-1]) == {1}:
        cut = plateaus[0] - 1
        return [*([call] for call in run[:cut]), run[cut:]]
    return [run]


def _merged(runs: list[list[Call]]) -> list[list[Call]]:
    """Join runs that take turns on one list, such as the two retrievals of a transformer block."""
    merged: list[list[Call]] = []
    for run in sorted(runs, key=lambda run: run[0].order):
        for other in merged:
            joined = sorted((*other, *run), key=lambda call: call.order)
            if (
                other[0].common == run[0].common
                and run[0].order < other[-1].order
                and not _parallel(other, run)
                and all(a.length <= b.length for a, b in pairwise(joined))
            ):
                other[:] = joined
                break
        else:
            merged.append(list(run))
    return merged


def _parallel(first: list[Call], second: list[Call]) -> bool:
    """Whether two runs grow in step, each on a list of its own (such as keys and values)."""
    a, b = [c.length for c in first], [c.length for c in second]
    shared = min(len(a), len(b))
    return a[:shared] == b[:shared] and all(x < y for x, y in pairwise(a))


def _attached(runs: list[list[Call]], rest: list[Call]) -> list[list[Call]]:
    """Add the lone first or last retrieval of a stage that has code of its own."""
    for call in rest:
        for run in runs:
            like = call.common[1:] == run[0].common[1:]
            kin = call.owner == run[0].owner or call.lines[:1] == run[0].lines[:1]
            if len(run) < 2 or not like or not kin:
                continue
            step = max(b.length - a.length for a, b in pairwise(run))
            if call.order > run[-1].order and 0 <= call.length - run[-1].length <= step:
                run.append(call)
                break
            if call.order < run[0].order and 0 <= run[0].length - call.length <= step:
                run.insert(0, call)
                break
    return runs

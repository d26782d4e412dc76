"""Which of the softmax calls of a forward pass retrieve from earlier layers.

Those that read a growing list: the next call of a stage reads the same tensors in the same order,
and behind them new ones from the same pass. Tokens, classes and experts are no such list.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ela_probe.discovery.calls import Call
from ela_probe.discovery.lineage import Lineage, Pieces
from ela_probe.discovery.source_lists import SourceLists


@dataclass
class Run:
    """Calls that read one growing list.

    lists: the lists that the last call may have read. before: the node of the call before it.
    grown: whether the list has grown from one call to another.
    """

    calls: list[Call]
    lists: list[Pieces]
    before: int = 0
    grown: bool = False

    def add(self, call: Call, lists: list[Pieces]) -> None:
        """Append a call that read one of these lists."""
        last = self.calls[-1]
        self.grown = self.grown or call.length > last.length
        self.calls.append(call)
        self.lists, self.before = lists, last.node

    def match(self, pieces: Pieces, known: SourceLists) -> int:
        """How well a list continues that of the last call; see `SourceLists.match`."""
        last = self.calls[-1]
        if pieces.total < last.length:
            return 0
        older = [before for before in self.lists if before.node <= pieces.node]
        return max(
            (known.match(first, pieces, before=self.before, call=last.node) for first in older),
            default=0,
        )


def growing_runs(calls: Sequence[Call], lineage: Lineage) -> list[list[Call]]:
    """The runs that are stages, in forward order. A call outside them is not layer attention.

    Example: an input x and two layers, and three calls that read [x], [x, y] and [x, y, z].

    >>> import torch
    >>> lineage = Lineage(torch.nn.Identity())
    >>> def softmax(order: int, sources: list[torch.Tensor]) -> Call:
    ...     weights = torch.stack(sources).softmax(0)  # [sources, 8]
    ...     return Call(
    ...         order, f"layers.{order}", "layers.*", owner="Layer", function="softmax",
    ...         reads="softmax", index=0, axis=0, shape=tuple(weights.shape), batch_axis=1,
    ...         node=lineage.node(weights),
    ...     )
    >>> with lineage:
    ...     x = torch.randn(8)
    ...     calls = [softmax(0, [x])]
    ...     y = x.tanh()
    ...     calls.append(softmax(1, [x, y]))
    ...     z = y.tanh()
    ...     calls.append(softmax(2, [x, y, z]))
    ...     calls.append(softmax(3, [z, y, x, x + y]))  # another list
    >>> [[(call.module, call.length) for call in run] for run in growing_runs(calls, lineage)]
    [[('layers.0', 1), ('layers.1', 2), ('layers.2', 3)]]
    """
    known = SourceLists(lineage, calls)
    runs: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for call, end in zip(calls, _next_of_same_rows(calls, lineage.now), strict=True):
        if call.source_follows_batch:
            continue
        lists = known.read_by(call, before=end)
        run = _continued(runs[call.rows], lists, known)
        if run is None:
            runs[call.rows].append(Run([call], lists))
        else:
            run.add(call, [pieces for pieces in lists if run.match(pieces, known)])
    every = [run for alike in runs.values() for run in alike]
    stages = [run.calls for run in every if run.grown]
    stages += [run.calls for run in every if not run.grown and _is_stage_of_one(run, stages)]
    return sorted(stages, key=lambda calls: calls[0].order)


def _next_of_same_rows(calls: Sequence[Call], end: int) -> list[int]:
    """For each call the node of the next one that might read the same list; else the end."""
    following: dict[tuple[Any, ...], int] = {}
    nodes = []
    for call in reversed(calls):
        nodes.append(following.get(call.rows, end))
        following[call.rows] = call.node
    return nodes[::-1]


def _continued(runs: Sequence[Run], lists: Sequence[Pieces], known: SourceLists) -> Run | None:
    """The run that the newest possible list continues; the latest of those that match best."""
    for pieces in lists:
        matches = [(run.match(pieces, known), number) for number, run in enumerate(runs)]
        match, number = max(matches, default=(0, 0))
        if match:
            return runs[number]
    return None


def _is_stage_of_one(run: Run, stages: Sequence[Sequence[Call]]) -> bool:
    """Whether a lone call is the only retrieval of a stage: called from where others start."""
    call = run.calls[0]
    return len(run.calls) == 1 and any(
        (call.starred_name, call.owner, call.reads, call.lines)
        == (first.starred_name, first.owner, first.reads, first.lines)
        and call.length <= first.length
        for first in (stage[0] for stage in stages)
    )

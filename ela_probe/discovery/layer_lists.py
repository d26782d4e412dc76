"""Weighted sums whose list is one of layers, where no softmax over a growing list tells.

The list is a chain: each tensor was computed from the one before it. Members of an ensemble and
levels of a pyramid are no chain, or come from unlike modules.
"""

from collections.abc import Collection, Sequence
from itertools import pairwise

from ela_probe.discovery.calls import Call, Sum, starred
from ela_probe.discovery.lineage import RESHAPED, UNCHANGED, Lineage
from ela_probe.discovery.observed_pass import ObservedPass
from ela_probe.discovery.source_lists import SourceLists

# What leaves weights the same weights, or a part of them.
KEPT = RESHAPED | UNCHANGED | {"dropout", "__getitem__", "split", "unbind", "chunk", "select"}
NO_CHAIN = "a weighted sum of tensors that don't come from each other: no list of layers"
NO_LAYERS = "a weighted sum over one list that doesn't grow; whether it holds layers can't be told"


def signed_runs(seen: ObservedPass) -> tuple[list[list[Sum]], dict[int, str]]:
    """The weighted sums that are stages, in forward order; and why others aren't, by their order.

    A stage reads a list that grows: each sum reads the tensors of the one before it, and new ones.
    Or it reads one list of outputs of like layers. Sums whose weights are a softmax are left out:
    that softmax tells.
    """
    softmaxes = {call.node for call in seen.calls if call.readable}
    runs: list[list[Sum]] = []
    for found in seen.sums:
        if is_one_of(softmaxes, found.weights, seen.lineage):
            continue
        before = [run for run in runs if _continues(found, run[-1])]
        if before:
            before[-1].append(found)
        else:
            runs.append([found])
    stages: list[list[Sum]] = []
    reasons: dict[int, str] = {}
    for run in runs:
        pieces = run[-1].pieces
        grown = len(pieces) > len(run[0].pieces)
        if not is_chain(seen.lineage, pieces):
            reasons |= {found.order: NO_CHAIN for found in run}
        elif grown or are_layers(seen, pieces):
            stages.append(run)
        else:
            reasons |= {found.order: NO_LAYERS for found in run}
    return stages, reasons


def static_sums(seen: ObservedPass, used: Collection[int]) -> list[list[Call]]:
    """The softmaxes that no input changes and that weight a list of layers, a stage each.

    used: the orders of the calls that are stages already.
    """
    rest = [c for c in seen.calls if c.order not in used and c.readable]
    fixed = [c for c in rest if c.node in seen.lineage.constants and c.length > 2]
    if not fixed:
        return []
    known = SourceLists(seen.lineage, seen.calls)
    found = []
    for call in fixed:
        lists = known.read_by(call, before=seen.lineage.now)
        lists = [pieces for pieces in lists if len(pieces.nodes) == call.length]
        if any(is_chain(seen.lineage, p.nodes) and are_layers(seen, p.nodes) for p in lists):
            found.append([call])
    return found


def is_one_of(nodes: Collection[int], weights: int, lineage: Lineage) -> bool:
    """Whether weights are one of these nodes, perhaps reshaped, cut or cast."""
    while weights not in nodes and lineage.made_by[weights] in KEPT and lineage.parents[weights]:
        weights = lineage.parents[weights][0]
    return weights in nodes


def is_chain(lineage: Lineage, pieces: Sequence[int]) -> bool:
    """Whether each tensor of a list was computed from the one before it."""
    return all(a < b and a in lineage.ancestors(b, a) for a, b in pairwise(pieces))


def are_layers(seen: ObservedPass, pieces: Sequence[int]) -> bool:
    """Whether all tensors of a list but its ends come from modules that differ in their numbers.

    At least two do. The first may be an embedding and the last one normalised.
    """
    names = [
        {starred(name): name for name in seen.returned.get(node, ())}
        for node in map(seen.lineage.before_reshaping, pieces)
    ]
    for alike in set().union(*names):
        found = [by_star[alike] for by_star in names if alike in by_star]
        middle = all(alike in by_star for by_star in names[1:-1])
        if middle and "*" in alike and len(set(found)) == len(found) >= 2:
            return True
    return False


def _continues(later: Sum, earlier: Sum) -> bool:
    """Whether a sum reads what an earlier one read, in the same order, and perhaps more.

    Both are of one shape, so that they can be compared.
    """
    same_shape = (later.result, later.rows) == (earlier.result, earlier.rows)
    return same_shape and later.pieces[: len(earlier.pieces)] == earlier.pieces

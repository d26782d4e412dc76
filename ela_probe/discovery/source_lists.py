"""The lists that calls read, and whether one list continues another: the same tensors, and more."""

from collections.abc import Sequence

from ela_probe.discovery.calls import Call
from ela_probe.discovery.lineage import Lineage, Pieces


class SourceLists:
    """The lists that the calls of a pass may read.

    Args:
        lineage: of the pass, which has ended.
        calls: all of the pass, in order.
    """

    def __init__(self, lineage: Lineage, calls: Sequence[Call]) -> None:
        self._lineage = lineage
        self._combined = {call.order: self._combinations(call) for call in calls}
        self._retrieved = {node for pairs in self._combined.values() for node, _ in pairs}

    def read_by(self, call: Call, *, before: int) -> list[Pieces]:
        """The lists that a call may read, the newest first: what it weights, or a query's keys.

        What comes from a list by way of another retrieval does not read it.

        Args:
            before: a node; no list that was joined later counts.
        """
        lineage = self._lineage
        partners = [partner for _, others in self._combined[call.order] for partner in others]
        others = self._retrieved - {call.node}
        lists = [
            pieces
            for pieces in lineage.lists(call.length)
            if pieces.node < before
            and any(
                pieces.node in lineage.ancestors(node, pieces.node, without=others)
                for node in (call.node, *partners)
            )
        ]
        joined = any(lineage.is_list(partner) for partner in partners)
        if len(partners) == call.length and not joined:
            # w[0] * x + w[1] * y + ..., without a list
            nodes = tuple(lineage.before_reshaping(partner) for partner in partners)
            lists.append(
                Pieces(max(call.node, *partners), nodes, (1,) * len(nodes), joined=len(nodes) > 1)
            )
        if not lists:  # the first of a stage may have nothing to join
            lists.append(Pieces(call.node, (call.node,), (call.length,), joined=False))
        return sorted(lists, key=lambda pieces: -pieces.node)

    def match(self, first: Pieces, second: Pieces, *, before: int, call: int) -> int:
        """Whether a list starts with the tensors of an earlier one: 0 no, 1 by ancestry, 2 exactly.

        The last tensor of the earlier list may be another: in a stack of blocks it is a sum that
        goes on. By ancestry a tensor is the same where both were computed, since the call before,
        from something that no other tensor of their lists was computed from: scores q·k, say, of
        the same key k.

        Args:
            call: the node of the call that read the first list. before: of the call before that.
        """
        count, constants = len(first.nodes), self._lineage.constants
        grown = second.total > first.total
        if (
            len(second.nodes) < count + grown
            or first.sizes[: count - 1] != second.sizes[: count - 1]
        ):
            return 0
        needed = range(max(1, count - 1))
        if all(first.nodes[k] == second.nodes[k] not in constants for k in needed):
            return 2
        if len(second.nodes) == 1:
            return 0
        if count == 1:
            return int(self._continues_one(first, second, call))
        a, b = self._own_ancestors(first, before), self._own_ancestors(second, call)
        return int(all(a[k] & b[k] for k in needed))

    def _continues_one(self, first: Pieces, second: Pieces, call: int) -> bool:
        """The same for a first list of one tensor, with which nothing can be compared."""
        if first.joined and second.nodes[0] < call:
            return False  # it is another tensor
        found = {node for node in self._line_of(second.nodes[0]) if node < call}
        if first.nodes[0] == call:  # nothing else is known of what it read
            read = self._lineage.ancestors(call, 0)
        else:
            read = frozenset(self._line_of(first.nodes[0]))
        return bool(found & read) and second.nodes[1] > call

    def _line_of(self, node: int) -> list[int]:
        """A tensor, the one or two that it was computed from, and on while that is one only."""
        lineage = self._lineage
        line, parents = [node], lineage.parents[node]
        while parents:
            line += [lineage.before_reshaping(parent) for parent in parents]
            parents = lineage.parents[line[-1]] if len(parents) == 1 else ()
            parents = parents if len(parents) == 1 else ()
        return [n for n in line if n not in lineage.constants]

    def _own_ancestors(self, pieces: Pieces, since: int) -> list[frozenset[int]]:
        """What each piece was computed from, without what all were, and back to `since`."""
        lineage = self._lineage
        sets = [lineage.ancestors(node, since) - lineage.constants for node in pieces.nodes]
        common = frozenset.intersection(*sets)
        return [
            found - common if node >= since else found
            for node, found in zip(pieces.nodes, sets, strict=True)
        ]

    def _combinations(self, call: Call) -> list[tuple[int, tuple[int, ...]]]:
        """The nodes that combine the weights of a call with others, in order, and these others."""
        lineage = self._lineage
        made = lineage.made_with(call.node)  # of nn.MultiheadAttention the output, too
        combined: list[tuple[int, tuple[int, ...]]]
        combined = [(node, ()) for node in made if node != call.node or not call.readable]
        weights, left = {call.node}, [call.node]
        while left and call.readable:
            for node in lineage.children[left.pop()]:
                others = tuple(parent for parent in lineage.parents[node] if parent not in weights)
                if others and not lineage.is_list(node):  # weights beside others are still weights
                    combined.append((node, others))
                elif node not in weights:
                    weights.add(node)
                    left.append(node)
        return sorted(combined)

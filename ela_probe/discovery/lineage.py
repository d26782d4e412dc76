"""Lineage: which tensors of a forward pass are made of which, and the lists that are joined.

A list is what `torch.stack`, `torch.cat` or writing into a buffer joins along one axis. Layer
attention reads a list that grows, and its pieces are tensors from earlier in the same pass.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

STACKED = {"stack"}
CONCATENATED = {"cat", "concat", "concatenate", "hstack", "vstack"}
RESHAPED = {
    *("expand", "flatten", "movedim", "permute", "reshape", "squeeze", "transpose"),
    *("unflatten", "unsqueeze", "view", "view_as"),
}
ELEMENTWISE = {"add", "div", "mul", "sub"}
UNCHANGED = {"clone", "contiguous", "detach", "to", "float", "double", "half", "bfloat16"}


@dataclass(frozen=True)
class Pieces:
    """A list of tensors that were joined along one axis.

    node: of the result. nodes: of the pieces, in order, before they were reshaped. sizes: the
    length of each piece along the axis. axis: None for a buffer. joined: False where one tensor
    stands for a list that was never joined.
    """

    node: int
    nodes: tuple[int, ...]
    sizes: tuple[int, ...]
    axis: int | None = None
    joined: bool = True

    @property
    def total(self) -> int:
        """The length of the joined axis."""
        return sum(self.sizes)


class Lineage(TorchFunctionMode):
    """A context manager that numbers the tensors of one forward pass in the order of their making.

    A tensor's number is its node. A tensor that changes in place keeps its node.

    Args:
        model: its parameters and buffers are constants; nothing counts as computed from them.

    Attributes:
        parents: by node, the nodes that it was computed from.
        made_by: by node, the name of the function that made it; "" where it was not seen.
        first_uses: by parameter or buffer (its node), the node that was first computed with it.
        constants: the nodes of parameters, buffers and what is computed from nothing else.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.parents: list[tuple[int, ...]] = []
        self.made_by: list[str] = []
        self.first_uses: dict[int, int] = {}
        self.constants: set[int] = set()
        self._nodes: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._joined: dict[int, Pieces] = {}
        self._joined_by_total: dict[int, list[Pieces]] = defaultdict(list)
        self._written: dict[int, list[int]] = {}
        self._writes_by_total: dict[int, list[int]] = defaultdict(list)
        for tensor in (*model.parameters(), *model.buffers()):
            self.constants.add(self.node(tensor))
        self._parameters = self.now

    @property
    def now(self) -> int:
        """The node that the next tensor will have."""
        return len(self.parents)

    @cached_property
    def children(self) -> list[list[int]]:
        """By node, the nodes that were computed from it. To be read when the pass has ended."""
        children: list[list[int]] = [[] for _ in self.parents]
        for node, parents in enumerate(self.parents):
            for parent in parents:
                children[parent].append(node)
        return children

    def node(self, tensor: Tensor) -> int:
        """The node of a tensor; a new one without parents where its making was not seen."""
        if tensor not in self._nodes:
            self._nodes[tensor] = self._new((), "")
        found: int = self._nodes[tensor]
        return found

    def ancestors(
        self, node: int, since: int, *, without: Collection[int] = frozenset()
    ) -> frozenset[int]:
        """A node and what it was computed from, back to the first nodes before `since`.

        without: no ancestor is looked for beyond these nodes.
        """
        seen, left = {node}, [node]
        while left:
            current = left.pop()
            if current >= since and current not in without:
                new = [parent for parent in self.parents[current] if parent not in seen]
                seen.update(new)
                left += new
        return frozenset(seen)

    def made_with(self, node: int) -> list[int]:
        """The nodes that one call of a function made together with this one, itself included."""
        parents = self.parents[node]
        first = last = node
        while parents and self.parents[first - 1] is parents:
            first -= 1
        while parents and last + 1 < self.now and self.parents[last + 1] is parents:
            last += 1
        return list(range(first, last + 1))

    def is_list(self, node: int) -> bool:
        """Whether this tensor was joined from others."""
        return node in self._joined

    def list_along(self, tensor: Tensor, axis: int) -> Pieces | None:
        """The list that lies along an axis of a tensor, which may have been reshaped.

        None if it was not joined along it, or if another axis is as long after reshaping.
        """
        node = self.node(tensor)
        if node in self._joined:
            return self._joined[node] if self._joined[node].axis == axis else None
        pieces, length = self._joined.get(self.before_reshaping(node)), tensor.shape[axis]
        known = pieces is not None and pieces.total == length
        return pieces if known and list(tensor.shape).count(length) == 1 else None

    def before_reshaping(self, node: int) -> int:
        """The node of the same values in the shape in which they were computed."""
        while self.made_by[node] in RESHAPED | UNCHANGED and self.parents[node]:
            node = self.parents[node][0]
        return node

    def lists(self, total: int) -> Iterator[Pieces]:
        """The lists of this total length along their axis, in no order."""
        yield from self._joined_by_total[total]
        for node in self._writes_by_total[total]:
            yield Pieces(node, tuple(self._written[node][:total]), (1,) * total)

    def __torch_function__(
        self,
        function: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name = getattr(function, "__name__", "")
        if name == "__setitem__":
            self._write(args[0], args[1], args[2])
            return result
        if name == "__getitem__" and _selects_everything(args[1]):
            name = "unsqueeze"
        made = [tensor for tensor in _tensors(result) if tensor not in self._nodes]
        if not made:
            if name == "copy_":
                self._copy(args[0], args[1])
            return result
        given = [self.node(tensor) for tensor in _tensors((args, kwargs))]
        parents = tuple(dict.fromkeys(node for node in given if node >= self._parameters))
        for parameter in given:
            if parameter < self._parameters:
                self.first_uses.setdefault(parameter, self.now)
        for tensor in made:
            node = self._nodes[tensor] = self._new(parents, name)
            if given and self.constants.issuperset(given):
                self.constants.add(node)
        if name in STACKED or name in CONCATENATED:
            self._join(name, made[0], args, kwargs)
        elif name in UNCHANGED or (name in ELEMENTWISE and len(given) == 2):
            self._keep_list(made[0], *given)
        return result

    def _new(self, parents: tuple[int, ...], name: str) -> int:
        self.parents.append(parents)
        self.made_by.append(name)
        return len(self.parents) - 1

    def _keep_list(self, result: Tensor, first: int, second: int | None = None) -> None:
        """Note that the result is the first tensor's list, changed by another one of its length."""
        same = self._joined.get(first)
        if same is None:
            return
        if second is not None:
            other = self._joined.get(self.before_reshaping(second))
            if other is None or other.total != same.total:
                return
        self._joined[self.node(result)] = same

    def _join(
        self, name: str, result: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Note what was joined; a piece that is a list along the same axis counts as its pieces."""
        tensors = args[0] if args else kwargs.get("tensors", ())
        axis = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0))
        axis = {"hstack": min(1, result.dim() - 1), "vstack": 0}.get(name, axis)
        if not isinstance(axis, int):  # named dimensions
            return
        axis %= result.dim()
        nodes: list[int] = []
        sizes: list[int] = []
        for tensor in tensors:
            node = self.before_reshaping(self.node(tensor))
            inner = self._joined.get(self.node(tensor)) if name in CONCATENATED else None
            if inner is not None and inner.axis == axis:
                nodes += inner.nodes
                sizes += inner.sizes
            elif tensor.dim() < result.dim() or tensor.shape[axis]:
                nodes.append(node)
                sizes.append(tensor.shape[axis] if tensor.dim() == result.dim() else 1)
        made = self.node(result)
        joined = Pieces(made, tuple(nodes), tuple(sizes), axis)
        self._joined[made] = joined
        self._joined_by_total[joined.total].append(joined)

    def _write(self, buffer: Tensor, key: Any, value: Any) -> None:
        """Note a tensor that was written to one place of a buffer: `buffer[:, t] = value`."""
        places = [k for k in (key if isinstance(key, tuple) else (key,)) if isinstance(k, int)]
        if isinstance(value, Tensor) and len(places) == 1:
            self._append(buffer, self.before_reshaping(self.node(value)))

    def _copy(self, target: Tensor, value: Any) -> None:
        """The same for `buffer[:, t].copy_(value)`."""
        view = self.made_by[self.node(target)] in ("__getitem__", "select")
        if isinstance(value, Tensor) and view and target._base is not None:
            self._append(target._base, self.before_reshaping(self.node(value)))

    def _append(self, buffer: Tensor, value: int) -> None:
        before = self.node(buffer)
        written = self._written.setdefault(before, [])
        written.append(value)
        made = self._nodes[buffer] = self._new((before, value), "write")
        self._written[made] = written
        self._writes_by_total[len(written)].append(made)


def _selects_everything(key: Any) -> bool:
    """Whether an index only adds axes, as x[:, None] does."""
    keys = key if isinstance(key, tuple) else (key,)
    return all(
        k is None or k is Ellipsis or (isinstance(k, slice) and k == slice(None)) for k in keys
    )


def _tensors(value: Any) -> Iterable[Tensor]:
    """The tensors in nested tuples, lists and dicts, as they are."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)

"""Contractions: functions that multiply two tensors and sum over an axis that both have.

einsum, matmul and its kin, tensordot, and a product that is summed afterwards.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

MATMUL = {"matmul", "__matmul__", "rmatmul", "__rmatmul__", "bmm", "mm", "mv", "dot"}
PRODUCT = {"mul", "multiply", "__mul__", "__rmul__"}
Axes = tuple[int, int]


class Contraction(NamedTuple):
    """One call. result: not copied. axes: of each operand the axis that is summed over."""

    function: str
    result: Tensor
    operands: tuple[Tensor, Tensor]
    axes: Axes


class Contractions:
    """Follows the functions of a forward pass, and says which of them sum products."""

    def __init__(self) -> None:
        self._products: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def clear(self) -> None:
        """Forget all tensors."""
        self._products.clear()

    def seen(
        self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> Contraction | None:
        """What a call of a function is, if it sums products over one axis; None for another one."""
        name = getattr(function, "__name__", "")
        if not isinstance(result, Tensor) or not result.is_floating_point():
            return None
        if name in PRODUCT:
            if len(args) == 2 and all(isinstance(value, Tensor) for value in args):
                self._products[result] = args
            return None
        if name == "sum":
            return self._summed(args, kwargs, result)
        if name == "einsum":
            found = einsum_operands(args)
        elif name in MATMUL and len(args) == 2:
            first, second = reversed(args) if name in ("rmatmul", "__rmatmul__") else args
            found = (first, second, (first.dim() - 1, max(0, second.dim() - 2)))
        elif name == "tensordot":
            found = tensordot_operands(args, kwargs)
        else:
            return None
        if found is None:
            return None
        first, second, axes = found
        return Contraction(name.strip("_"), result, (first, second), axes)

    def _summed(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor
    ) -> Contraction | None:
        """A sum over one axis of a product, whose operands may have been broadcast."""
        product = args[0] if args else None
        operands = None if product is None else self._products.get(product)
        dim = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else None))
        if isinstance(dim, tuple | list) and len(dim) == 1:
            dim = dim[0]
        keeps = kwargs.get("keepdim", args[2] if len(args) > 2 else False)
        if operands is None or not isinstance(dim, int) or keeps:
            return None
        assert product is not None
        axis = dim % product.dim()
        first, second = (axis - product.dim() + operand.dim() for operand in operands)
        if min(first, second) < 0:  # one of them has no such axis: it is no weight of each term
            return None
        if operands[0].shape[first] != operands[1].shape[second]:
            return None
        return Contraction("sum of a product", result, operands, (first, second))


def einsum_operands(args: tuple[Any, ...]) -> tuple[Tensor, Tensor, Axes] | None:
    """The two operands of an einsum that sums over one axis of both, and this axis of each."""
    if len(args) == 2 and isinstance(args[1], tuple | list):
        args = (args[0], *args[1])
    if len(args) != 3 or not isinstance(args[0], str):
        return None
    equation, first, second = args
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow or len(terms) != 2:
        return None
    labels = [axis_labels(t, x.dim()) for t, x in zip(terms, (first, second), strict=True)]
    summed = [label for label in labels[0] if label in labels[1] and label not in right]
    if len(summed) != 1 or summed[0].startswith("."):
        return None
    return first, second, (labels[0].index(summed[0]), labels[1].index(summed[0]))


def axis_labels(term: str, dims: int) -> list[str]:
    """A label for each axis of an operand; those of an ellipsis are counted from its end.

    >>> axis_labels("l...d", 4)
    ['l', '.2', '.1', 'd']
    """
    before, dots, after = term.partition("...")
    spread = dims - len(before) - len(after) if dots else 0
    return [*before, *(f".{k}" for k in range(spread, 0, -1)), *after]


def tensordot_operands(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, Tensor, Axes] | None:
    """The same of a tensordot."""
    if len(args) < 2:
        return None
    first, second = args[:2]
    dims = kwargs.get("dims", args[2] if len(args) > 2 else 2)
    if dims == 1:
        return first, second, (first.dim() - 1, 0)
    pair = _single_pair(dims)
    return (
        None if pair is None else (first, second, (pair[0] % first.dim(), pair[1] % second.dim()))
    )


def _single_pair(dims: Any) -> Axes | None:
    """The axes of a tensordot over one axis of each, given as two lists or numbers."""
    if not isinstance(dims, Sequence) or len(dims) != 2:
        return None
    axes = [d[0] if isinstance(d, Sequence) and len(d) == 1 else d for d in dims]
    return (axes[0], axes[1]) if all(isinstance(axis, int) for axis in axes) else None

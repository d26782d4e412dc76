"""A softmax that a model writes out: exp(x) / exp(x).sum(axis), log_softmax(x).exp(), and such."""

from typing import Any, Literal, NamedTuple

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

CASTS = {"clone", "contiguous", "detach", "to", "float", "double", "half", "bfloat16"}
RESHAPES = {"unsqueeze", "squeeze", "view", "reshape", "expand", "expand_as", "movedim"}
BOUNDS = {"clamp", "clamp_min", "clip", "add", "masked_fill", "where"}  # positive stays positive


class Role(NamedTuple):
    """What a tensor is in a softmax that is being written out.

    what: exp of anything; the sum of such a tensor over an axis, or 1 / that sum; the logsumexp
    over an axis; or log weights, whose exp is a softmax over an axis. axis: counted from the front.
    of: the tensor that the sum or logsumexp was taken of.
    """

    what: Literal["exp", "sum", "1 / sum", "logsumexp", "log weights"]
    axis: int = 0
    of: Tensor | None = None


class WrittenOut:
    """Follows the functions of a forward pass, and says which of them end a softmax."""

    def __init__(self) -> None:
        self._roles: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def clear(self) -> None:
        """Forget all tensors."""
        self._roles.clear()

    def softmax(
        self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> tuple[str, int] | None:
        """How a softmax was written and its axis, from the front, where this function ends one."""
        if not isinstance(result, Tensor) or not args or not isinstance(args[0], Tensor):
            return None
        name = getattr(function, "__name__", "")
        name = name.strip("_") if name.startswith("__") else name.rstrip("_")
        x, role = args[0], self._roles.get(args[0])
        other = next((value for value in args[1:2] if isinstance(value, Tensor)), None)
        second = None if other is None else self._roles.get(other)
        if name == "exp":
            if role is not None and role.what == "log weights":
                return "exp(log weights)", role.axis
            self._roles[result] = Role("exp")
        elif name in ("log_softmax", "logsumexp") and (axis := _axis(x, args, kwargs)) is not None:
            log = name == "log_softmax"
            self._roles[result] = Role("log weights", axis) if log else Role("logsumexp", axis, x)
        elif name == "sub" and second is not None and second.what == "logsumexp" and second.of is x:
            self._roles[result] = Role("log weights", second.axis)
        elif role is not None:
            return self._combined(name, x, role, second, args, kwargs, result)
        return None

    def _combined(
        self,
        name: str,
        x: Tensor,
        role: Role,
        second: Role | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: Tensor,
    ) -> tuple[str, int] | None:
        """The same for a function of a tensor that has a role, and perhaps of a second one."""
        if role.what == "exp":
            axis = _axis(x, args, kwargs)
            normalises = {"div": "sum", "true_divide": "sum", "mul": "1 / sum"}.get(name)
            if second is not None and second.what == normalises and second.of is x:
                return "exp / sum", second.axis
            if name == "normalize" and kwargs.get("p", args[1] if len(args) > 1 else 2) == 1:
                axis = kwargs.get("dim", args[2] if len(args) > 2 else 1)
                return "exp / sum", axis % x.dim()
            if name == "sum" and axis is not None:
                self._roles[result] = Role("sum", axis, x)
            elif name in ("mul", *CASTS, *RESHAPES, *BOUNDS):
                self._roles[result] = role
        elif role.what == "log weights":
            if name in CASTS:
                self._roles[result] = role
        elif name in ("reciprocal", "rdiv") and role.what == "sum":
            self._roles[result] = role._replace(what="1 / sum")
        elif name in (*CASTS, *RESHAPES, *BOUNDS):
            self._roles[result] = role
        return None


def _axis(x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    """The one axis that a function of x runs over, from the front; None if there are several."""
    axis = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else None))
    if isinstance(axis, tuple | list) and len(axis) == 1:
        axis = axis[0]
    if axis is None and x.dim() == 1:
        return 0
    return axis % x.dim() if isinstance(axis, int) and x.dim() else None

"""Watch: the calls in a forward pass that attend, and the modules that make them.

A torch function mode sees the calls; hooks on every module keep the stack of running modules.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ela_probe.discovery.hooks import Hooks

What = Literal["softmax", "attention", "gate"]


@dataclass(frozen=True)
class Firing:
    """One call that attends, seen while the watched model runs.

    what: the kind of call: a softmax, a fused attention or a sigmoid. function: its name. modules:
    the names of the running modules, the root ("") first. axis: of a softmax, counted from the
    front. value: the result (detached, not copied). length: the number of things attended over; 0
    for a gate.
    """

    what: What
    function: str
    modules: tuple[str, ...]
    axis: int
    value: Tensor
    length: int


class Watch(TorchFunctionMode):
    """A context manager that reports every softmax, fused attention and sigmoid of a model.

    Only calls during the model's own forward pass are reported: not those of a backward pass that
    recomputes, nor those of a part that is called by itself. A function that calls another of
    these is reported once. Hooks and mode are removed when the block ends, also by an exception.

    Args:
        model: the whole model, unwrapped and uncompiled.
        report: called with each Firing, in forward order.
    """

    def __init__(self, model: nn.Module, report: Callable[[Firing], None]) -> None:
        super().__init__()
        self._model, self._report = model, report
        self._names = {id(module): name for name, module in model.named_modules()}
        self._running: list[nn.Module] = []
        self._hooks = Hooks()

    def __enter__(self) -> "Watch":
        try:
            self.resume()
            super().__enter__()
        except BaseException:
            self.pause()
            raise
        return self

    def __exit__(self, *exception: Any) -> None:
        self.pause()
        super().__exit__(*exception)

    def resume(self) -> None:
        """Report from the next forward pass on."""
        self.pause()
        for module in self._model.modules():
            self._hooks.before(module, self._starts, first=True)
            self._hooks.after(module, self._ends, always=True)

    def pause(self) -> None:
        """Stop reporting and remove the hooks; the mode keeps its place among other modes."""
        self._hooks.remove()
        self._running.clear()

    def _starts(self, module: nn.Module, inputs: Any, options: Any) -> None:
        if module is self._model:
            self._running.clear()  # what an interrupted pass left behind
        if self._running or module is self._model:
            self._running.append(module)

    def _ends(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._running and self._running[-1] is module:
            self._running.pop()

    def __torch_function__(
        self,
        function: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        what = WATCHED.get(function) if self._running else None
        if what is None:
            return result
        value = result[0] if isinstance(result, tuple) else result
        if not value.is_floating_point() or not value.dim():
            return result
        axis, length = -1, 0
        if what == "softmax":
            axis = _axis(function, value, args, kwargs)
            length = value.shape[axis]
        elif what == "attention":
            length = _keys(function, args, kwargs)
        self._report(
            Firing(
                what,
                getattr(function, "__name__", str(function)),
                tuple(self._names[id(module)] for module in self._running),
                axis,
                value.detach(),
                length,
            )
        )
        return result


SOFTMAX = {F.softmax, torch.softmax, Tensor.softmax, torch.special.softmax, F.softmin}
WATCHED: dict[Any, What] = {
    **dict.fromkeys(SOFTMAX, "softmax"),
    F.gumbel_softmax: "softmax",
    F.scaled_dot_product_attention: "attention",
    F.multi_head_attention_forward: "attention",
    **dict.fromkeys(
        (torch.sigmoid, Tensor.sigmoid, F.sigmoid, F.hardsigmoid, torch.special.expit), "gate"
    ),
}


def _axis(function: Any, value: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """The axis that a softmax ran over, counted from the front."""
    position = 4 if function is F.gumbel_softmax else 1
    axis = kwargs.get("dim", kwargs.get("axis"))
    if axis is None and len(args) > position:
        axis = args[position]
    if axis is None:  # F.softmax's own choice, which it warns of
        axis = -1 if function is F.gumbel_softmax else int(value.dim() not in (0, 1, 3))
    return int(axis) % value.dim()


def _keys(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """How many keys a fused attention attends over."""
    key = args[1] if len(args) > 1 else kwargs["key"]
    return int(key.shape[0] if function is F.multi_head_attention_forward else key.shape[-2])

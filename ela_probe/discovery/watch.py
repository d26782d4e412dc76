"""Watch: the calls in a forward pass that attend, and the modules that make them.

A torch function mode sees the calls; hooks on every module keep the stack of running modules.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ela_probe.discovery.contractions import Contraction, Contractions
from ela_probe.discovery.hooks import Hooks
from ela_probe.discovery.written_out import WrittenOut

What = Literal["softmax", "attention", "gate", "sum"]


@dataclass(frozen=True)
class Firing:
    """One call that attends, seen while the watched model runs.

    what: the kind of call: a softmax, a fused attention, a gate (a sigmoid), or a sum of products
    (see `Contractions`), with its two operands and the axis of each. function: its name.
    value: its result, not copied; the weights where there are some. shape: of the weights, also of
    those that a fused attention doesn't show. axis: of the weights, that of what is attended over,
    counted from the front. modules: the names of the running modules, the root ("") first.
    """

    what: What
    function: str
    value: Tensor
    shape: tuple[int, ...]
    axis: int
    modules: tuple[str, ...]
    operands: tuple[Tensor, ...] = ()
    axes: tuple[int, ...] = ()


class Watch(TorchFunctionMode):
    """A context manager that reports every softmax, fused attention and sigmoid of a model.

    A softmax may also be written out (see `written_out`) or lie inside nn.MultiheadAttention, which
    returns its weights with `need_weights=True`.

    Only calls during the model's own forward pass are reported: not those of a backward pass that
    recomputes, nor those of a part that is called by itself. A function that calls another of
    these is reported once. Hooks and mode are removed when the block ends, also by an exception.

    Args:
        model: the whole model, unwrapped and uncompiled.
        report: called with each Firing, in forward order.
        sums: whether to report sums of products, too.
    """

    def __init__(
        self, model: nn.Module, report: Callable[[Firing], None], *, sums: bool = False
    ) -> None:
        super().__init__()
        self._contractions = Contractions() if sums else None
        self._model, self._report = model, report
        self._names = {id(module): name for name, module in model.named_modules()}
        self._running: list[nn.Module] = []
        self._written_out = WrittenOut()
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
        self._forget()

    def _forget(self) -> None:
        self._written_out.clear()
        if self._contractions is not None:
            self._contractions.clear()

    def _starts(self, module: nn.Module, inputs: Any, options: Any) -> None:
        if module is self._model:
            self._running.clear()  # what an interrupted pass left behind
            self._forget()
        if self._running or module is self._model:
            self._running.append(module)

    def _ends(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._running and self._running[-1] is module:
            self._running.pop()
        if not self._running:
            self._forget()

    def __torch_function__(
        self,
        function: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if self._running:
            seen = _seen(function, args, kwargs, result)
            if seen is None:
                written = self._written_out.softmax(function, args, kwargs, result)
                shape = tuple(getattr(result, "shape", ()))
                seen = written and Seen("softmax", written[0], result, shape, written[1])
            if seen is not None and seen.value.is_floating_point() and seen.value.dim():
                names = tuple(self._names[id(module)] for module in self._running)
                self._report(Firing(*seen, names))
            if self._contractions is not None:
                self._report_sum(self._contractions.seen(function, args, kwargs, result))
        return result

    def _report_sum(self, found: Contraction | None) -> None:
        if found is not None:
            names = tuple(self._names[id(module)] for module in self._running)
            value = found.result
            firing = Firing("sum", found.function, value, tuple(value.shape), -1, names)
            self._report(replace(firing, operands=found.operands, axes=found.axes))


class Seen(NamedTuple):
    """The fields of a Firing that its function tells."""

    what: What
    function: str
    value: Tensor
    shape: tuple[int, ...]
    axis: int


def _seen(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Seen | None:
    """What a call of one of the watched functions is; None for any other function."""
    what = WATCHED.get(function)
    if what is None:
        return None
    value = result[0] if isinstance(result, tuple) else result
    name, shape, axis = function.__name__, tuple(value.shape), -1
    if function is F.multi_head_attention_forward and result[1] is not None:
        what, value, shape = "softmax", result[1], tuple(result[1].shape)
    elif what == "attention":
        query, key = (_argument(args, kwargs, k, n) for k, n in enumerate(("query", "key")))
        if function is F.multi_head_attention_forward:  # tokens come first
            query, key = (t.movedim(0, -2) for t in (query, key))
        shape = (*query.shape[:-1], key.shape[-2])
    elif what == "softmax":
        axis = _axis(function, value, args, kwargs)
    return Seen(what, name, value, shape, axis % max(1, len(shape)))


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str) -> Any:
    return args[position] if len(args) > position else kwargs[name]


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
    return int(axis) % max(1, value.dim())

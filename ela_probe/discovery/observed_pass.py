"""One observed forward pass: every call that attends, and the lineage of its tensors."""

import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ela_probe.discovery.calls import Call, Sum, starred
from ela_probe.discovery.hooks import Hooks
from ela_probe.discovery.lineage import Lineage
from ela_probe.discovery.watch import Firing, Watch
from ela_probe.forward import call, uncompiled, undisturbed
from ela_probe.sites import Reads
from ela_probe.system.nested_tensors import leaves_of


class Gate(NamedTuple):
    """A sigmoid: the module that called it, its function and the shape of its result."""

    module: str
    function: str
    shape: tuple[int, ...]


@dataclass
class ObservedPass:
    """What happened in a pass.

    calls: all that attend. sums: the weighted sums over a list. sums_in: by module how many sums of
    products it makes, of lists or others. weights: of each call by its order, where they were kept.
    returned: by node the modules whose first output tensor it was, innermost first.
    """

    lineage: Lineage
    calls: list[Call] = field(default_factory=list)
    sums: list[Sum] = field(default_factory=list)
    sums_in: Counter[str] = field(default_factory=Counter)
    returned: dict[int, list[str]] = field(default_factory=dict)
    gates: list[Gate] = field(default_factory=list)
    weights: dict[int, Tensor] = field(default_factory=dict)


def observed_pass(model: nn.Module, inputs: Any, *, keep_weights: bool = False) -> ObservedPass:
    """Run the model in eval mode without gradients, uncompiled, and note what attends."""
    seen = ObservedPass(Lineage(model))
    counts: Counter[tuple[str, Reads]] = Counter()
    modules = dict(model.named_modules())

    def report(firing: Firing) -> None:
        name = firing.modules[-1]
        if firing.what == "sum":
            found = _weighted_sum(firing, seen)
            if found is not None:
                seen.sums.append(found)
            seen.sums_in[name] += 1
            return
        if firing.what == "gate":
            seen.gates.append(Gate(name, firing.function, firing.shape))
            return
        readable = firing.what == "softmax"
        is_module = isinstance(modules[name], nn.Softmax | nn.Softmax2d) and bool(name)
        reads: Reads = "output" if is_module else "softmax"
        owner = firing.modules[-2] if is_module else name
        order = len(seen.calls)
        seen.calls.append(
            Call(
                order=order,
                module=name,
                starred_name=starred(owner),
                owner=type(modules[owner]).__qualname__,
                function="nn.Softmax" if is_module else firing.function,
                reads=reads,
                index=counts[name, reads] if readable else 0,
                axis=firing.axis,
                shape=firing.shape,
                node=seen.lineage.node(firing.value),
                lines=_lines(2 if is_module else 1),
                readable=readable,
            )
        )
        counts[name, reads] += readable
        if keep_weights and readable:
            seen.weights[order] = firing.value.float().cpu().clone()

    # The mode that is entered last sees a function first; the watch asks for the result's node.
    hooks = Hooks()
    try:
        with undisturbed(model), uncompiled(model), seen.lineage, Watch(model, report, sums=True):
            for name, module in modules.items():
                hooks.after(module, partial(_returned, seen, name))
            call(model, inputs)
    finally:
        hooks.remove()
    return seen


def _returned(seen: ObservedPass, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
    first = next((leaf for leaf in leaves_of(output) if isinstance(leaf, Tensor)), None)
    if first is not None:
        seen.returned.setdefault(seen.lineage.node(first), []).append(name)


def _weighted_sum(firing: Firing, seen: ObservedPass) -> Sum | None:
    """A sum of products as a weighted sum over a list; None where no operand is a list.

    The pieces of the list are tensors, not parts of one, and its axis is the one summed over. The
    weights are no list themselves.
    """
    lineage, name = seen.lineage, firing.modules[-1]
    nodes = [lineage.node(operand) for operand in firing.operands]
    pairs = zip(firing.operands, firing.axes, strict=True)
    lists = [lineage.list_along(operand, axis) for operand, axis in pairs]
    for values, weights in ((0, 1), (1, 0)):
        pieces = lists[values]
        if pieces is None or lists[weights] is not None:
            continue
        if pieces.total < 2 or set(pieces.sizes) != {1}:
            continue
        shape = tuple(firing.operands[weights].shape)
        return Sum(
            order=len(seen.sums),
            module=name,
            starred_name=starred(name),
            owner="",
            function=firing.function,
            reads="sum",
            index=seen.sums_in[name],
            axis=firing.axes[weights],
            shape=shape,
            node=lineage.node(firing.value),
            pieces=pieces.nodes,
            operand=weights,
            weights=nodes[weights],
            result=firing.shape,
        )
    return None


def _lines(modules: int) -> tuple[Any, ...]:
    """The places in the code of the innermost `modules` modules that led to this call."""
    package = str(Path(torch.__file__).parent)
    places: list[Any] = []
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code is nn.Module._call_impl.__code__:
            modules -= 1
            if modules == 0:
                break
        elif not code.co_filename.startswith(package) and code.co_filename != __file__:
            name = code.co_qualname if sys.version_info >= (3, 11) else code.co_name
            places.append((code.co_filename, name, frame.f_lasti))
        frame = frame.f_back  # type: ignore[assignment]
    return tuple(places)

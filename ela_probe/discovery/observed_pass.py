"""One observed forward pass: every call that attends, and the lineage of its tensors."""

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ela_probe.discovery.calls import Call, starred
from ela_probe.discovery.lineage import Lineage
from ela_probe.discovery.watch import Firing, Watch
from ela_probe.forward import call, uncompiled, undisturbed
from ela_probe.sites import Reads


class Gate(NamedTuple):
    """A sigmoid: the module that called it, its function and the shape of its result."""

    module: str
    function: str
    shape: tuple[int, ...]


@dataclass
class ObservedPass:
    """What happened in a pass. weights: of each call by its order, where they were kept."""

    lineage: Lineage
    calls: list[Call] = field(default_factory=list)
    gates: list[Gate] = field(default_factory=list)
    weights: dict[int, Tensor] = field(default_factory=dict)


def observed_pass(model: nn.Module, inputs: Any, *, keep_weights: bool = False) -> ObservedPass:
    """Run the model in eval mode without gradients, uncompiled, and note what attends."""
    seen = ObservedPass(Lineage(model))
    counts: Counter[tuple[str, Reads]] = Counter()
    modules = dict(model.named_modules())

    def report(firing: Firing) -> None:
        name = firing.modules[-1]
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
    with undisturbed(model), uncompiled(model), seen.lineage, Watch(model, report):
        call(model, inputs)
    return seen


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

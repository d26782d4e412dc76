"""Discovery by observation: one forward pass, every softmax in it, and which of them grow.

A second pass with one more sample shows which axis runs over the samples.
"""

import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ela_probe.discovery.bystanders import Bystander, bystanders, starred
from ela_probe.discovery.growth import Call, growing_runs
from ela_probe.discovery.watch import Firing, Watch
from ela_probe.errors import ElaProbeError, ModelError
from ela_probe.forward import call, moved, undisturbed
from ela_probe.sites import Site, Stage
from ela_probe.system.nested_tensors import mapped, tensors_of


@dataclass(frozen=True)
class Found:
    """How a site was found: in words, the shape of what is read there, the source axis in it."""

    how: str
    shape: tuple[int, ...] | None = None
    axis: int = -1


@dataclass(frozen=True)
class Observation:
    """What was seen: the stages, how each site was found, and what else attends."""

    stages: tuple[Stage, ...]
    found: dict[str, Found]
    bystanders: tuple[Bystander, ...]


def observe(model: nn.Module, inputs: Any, *, batch_axis: int = 0) -> Observation:
    """Run a model in eval mode, without gradients, and find its layer attention.

    The modes of its modules and the random state are put back.

    Args:
        model: unwrapped and uncompiled.
        inputs: a small batch: a tensor, a tuple of arguments or a dict of keyword arguments. It
            is moved to where the model is.
        batch_axis: the axis of the inputs that runs over the samples.

    Raises:
        ModelError: the model does not take these inputs.
    """
    inputs = moved(inputs, model)
    try:
        calls, others = _seen(model, inputs)
    except ElaProbeError:
        raise
    except Exception as error:
        first = (str(error).splitlines() or [""])[0][:150]
        raise ModelError(
            f"the {type(model).__name__} does not take these example inputs "
            f"({type(error).__name__}: {first}); expected a small batch as in training, a tensor, "
            "a tuple of arguments or a dict of keyword arguments"
        ) from error
    calls = _with_batch_axes(calls, model, inputs, batch_axis)
    runs = growing_runs(calls)
    totals = Counter((call.module, call.reads) for call in calls)
    stages, found = [], {}
    for name, run in zip(_stage_names(runs), runs, strict=True):
        sites = []
        for fired in run:
            total = totals[fired.module, fired.reads]
            title = fired.module or "forward"
            site = Site(
                f"{title}@{fired.index}" if total > 1 else title,
                fired.module,
                fired.length,
                reads=fired.reads,
                call=fired.index,
                calls=total,
                axis=fired.axis,
                batch_axis=fired.batch_axis,
            )
            sites.append(site)
            how = f"observed {fired.function} over axis {fired.axis} of {list(fired.shape)}"
            found[site.name] = Found(how, fired.shape, fired.axis)
        stages.append(Stage(name, "softmax", tuple(sites)))
    used = {call.order for run in runs for call in run}
    rest = [call for call in calls if call.order not in used]
    return Observation(tuple(stages), found, tuple(bystanders(rest, others)))


def _seen(model: nn.Module, inputs: Any) -> tuple[list[Call], list[Firing]]:
    """The softmax calls of one forward pass, and the other calls that attend."""
    calls: list[Call] = []
    others: list[Firing] = []
    counts: Counter[tuple[str, str]] = Counter()
    modules = dict(model.named_modules())

    def report(firing: Firing) -> None:
        name = firing.modules[-1]
        if firing.what != "softmax":
            others.append(firing)
            return
        is_module = isinstance(modules[name], nn.Softmax | nn.Softmax2d) and bool(name)
        reads = "output" if is_module else "softmax"
        owner = firing.modules[-2] if is_module else name
        lines, route = _lines(2 if is_module else 1)
        calls.append(
            Call(
                order=len(calls),
                module=name,
                starred_name=starred(owner),
                owner=type(modules[owner]).__qualname__,
                function="nn.Softmax" if is_module else firing.function,
                reads="output" if is_module else "softmax",
                index=counts[name, reads],
                axis=firing.axis,
                shape=tuple(firing.value.shape),
                lines=lines,
                route=route,
            )
        )
        counts[name, reads] += 1

    with undisturbed(model), Watch(model, report):
        call(model, inputs)
    return calls, others


def _lines(modules: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The places in the model's code that led to this call, innermost first.

    Returns: the places inside the innermost `modules` modules, and all places.
    """
    package = str(Path(torch.__file__).parent)
    route: list[Any] = []
    inside, frame = None, sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code is nn.Module._call_impl.__code__:
            modules -= 1
            if modules == 0:
                inside = len(route)
        elif not code.co_filename.startswith(package) and code.co_filename != __file__:
            route.append(
                (
                    code.co_filename,
                    code.co_qualname if sys.version_info >= (3, 11) else code.co_name,
                    frame.f_lasti,
                )
            )
        frame = frame.f_back  # type: ignore[assignment]
    return tuple(route[:inside]), tuple(route)


def _with_batch_axes(
    calls: list[Call], model: nn.Module, inputs: Any, batch_axis: int
) -> list[Call]:
    """The calls with the axis that grows with the batch; the first axis if none can be found."""
    sizes = [t.shape[batch_axis] for t in tensors_of(inputs) if t.dim() > batch_axis]
    grown: list[Call] | None = None
    for everything in (True, False):  # a mask may be as long as the batch by chance
        if not sizes or grown is not None:
            break
        larger = _one_more(inputs, batch_axis, sizes[0], everything=everything)
        try:
            grown, _ = _seen(model, larger)
        except Exception:  # it takes this batch size only
            continue
        if [(c.module, c.axis, len(c.shape)) for c in grown] != [
            (c.module, c.axis, len(c.shape)) for c in calls
        ]:
            grown = None
    if grown is None:
        return [
            replace(c, batch_axis=int(c.axis == 0) if len(c.shape) > 1 else None) for c in calls
        ]
    result = []
    for before, after in zip(calls, grown, strict=True):
        axes = [i for i, n in enumerate(before.shape) if after.shape[i] != n]
        result.append(
            replace(
                before,
                batch_axis=next((i for i in axes if i != before.axis), None),
                source_follows_batch=before.axis in axes,
            )
        )
    return result


def _one_more(inputs: Any, axis: int, size: int, *, everything: bool) -> Any:
    """The inputs with their first sample repeated: in all tensors, or only in the first tensor."""
    done = False

    def larger(tensor: Tensor) -> Tensor:
        nonlocal done
        if tensor.dim() <= axis or tensor.shape[axis] != size or (done and not everything):
            return tensor
        done = True
        return torch.cat([tensor, tensor.narrow(axis, 0, 1)], dim=axis)

    return mapped(inputs, larger)


def _stage_names(runs: list[list[Call]]) -> list[str]:
    """The longest module name that all sites of a stage share, numbered if it is not unique."""
    names: list[str] = []
    for run in runs:
        parts = [item.module.split(".") for item in run]
        shared = []
        for words in zip(*parts, strict=False):
            if len(set(words)) > 1:
                break
            shared.append(words[0])
        name, count = ".".join(shared) or "layers", 2
        unique = name
        while unique in names:
            unique, count = f"{name}-{count}", count + 1
        names.append(unique)
    return names

"""Discovery by observation: a forward pass shows which softmaxes and sums read a growing list.

Other passes on inputs of other sizes show which axis runs over the samples, and which lists grow
with the length of the inputs: over tokens or time, not over layers.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

from torch import nn

from ela_probe.discovery.batch_axes import sums_with_batch_axes, with_batch_axes
from ela_probe.discovery.bystanders import Bystander, bystanders
from ela_probe.discovery.calls import Call, Sum
from ela_probe.discovery.growth import growing_runs
from ela_probe.discovery.layer_lists import signed_runs, static_sums
from ela_probe.discovery.lineage import Lineage
from ela_probe.discovery.observed_pass import ObservedPass, observed_pass
from ela_probe.discovery.over_time import reasons_over_time
from ela_probe.errors import ElaProbeError, ModelError
from ela_probe.forward import moved
from ela_probe.sites import Kind, Site, Stage
from ela_probe.system.messages import class_and_first_line


@dataclass(frozen=True)
class Found:
    """How a site was found: in words, the shape of what is read there, the source axis in it."""

    how: str
    shape: tuple[int, ...] | None = None
    axis: int = -1


@dataclass(frozen=True)
class Observation:
    """What was seen: the stages, how each site was found, and what else attends.

    guess: what was guessed of the sites, in a sentence; None where everything was seen.
    """

    stages: tuple[Stage, ...]
    found: dict[str, Found]
    bystanders: tuple[Bystander, ...]
    guess: str | None = None


def observe(model: nn.Module, inputs: Any, *, batch_axis: int = 0) -> Observation:
    """Run a model in eval mode, without gradients, and find its layer attention.

    The modes of its modules and the random state are restored.

    Args:
        model: unwrapped and uncompiled.
        inputs: a small batch: a tensor, a tuple of arguments or a dict of keyword arguments. It
            is moved to where the model is.
        batch_axis: the axis of the inputs that runs over the samples.

    Raises:
        ModelError: the model does not take these inputs.
        DataError: the inputs are not the arguments of its forward.
    """
    inputs = moved(inputs, model)
    try:
        seen = observed_pass(model, inputs)
    except ElaProbeError:
        raise
    except Exception as error:
        raise ModelError(
            f"the {type(model).__name__} does not take these example inputs "
            f"({class_and_first_line(error)}); expected a small batch as in training, a tensor, "
            "a tuple of arguments or a dict of keyword arguments"
        ) from error
    seen.calls = with_batch_axes(seen.calls, model, inputs, batch_axis)
    runs = growing_runs(seen.calls, seen.lineage)
    runs += static_sums(seen, {call.order for run in runs for call in run})
    reasons = reasons_over_time(runs, seen, model, inputs, batch_axis)
    for run in runs:
        if not all(call.readable for call in run):
            reasons |= {call.order: FUSED for call in run if call.order not in reasons}
    runs = [run for run in runs if not any(call.order in reasons for call in run)]
    sums, unlike = _signed(seen, model, inputs, batch_axis)
    stages, found = _stages([*runs, *sums], seen)
    used = {call.order for run in runs for call in run}
    rest = [call for call in seen.calls if call.order not in used]
    others = tuple(bystanders(rest, reasons, seen.gates)) + tuple(unlike)
    guessed = next((call for run in runs for call in run if call.batch_axis_guessed), None)
    return Observation(stages, found, others, None if guessed is None else _guess(guessed))


FUSED = (
    "reads a list of earlier layers, but a fused attention shows no weights; write it with a "
    "softmax, or call nn.MultiheadAttention with need_weights=True"
)


def _signed(
    seen: ObservedPass, model: nn.Module, inputs: Any, batch_axis: int
) -> tuple[list[list[Sum]], list[Bystander]]:
    """The stages of signed weights, and the weighted sums over other lists with the reasons."""
    runs, reasons = signed_runs(seen)
    orders = {found.order for run in runs for found in run}
    axes = sums_with_batch_axes(seen.sums, model, inputs, batch_axis) if runs else []
    shown = {
        found.order: found
        for found in axes
        if found.values_axis is not None and not found.source_follows_batch
    }
    reasons |= dict.fromkeys(orders - set(shown), NO_SAMPLES)
    runs = [[shown[s.order] for s in run] for run in runs if all(s.order in shown for s in run)]
    sums_of = attrgetter("sums")
    over_time = reasons_over_time(runs, seen, model, inputs, batch_axis, of_pass=sums_of)
    reasons |= over_time
    runs = [run for run in runs if not any(found.order in over_time for found in run)]
    rest = [found for found in seen.sums if found.order in reasons]
    return runs, bystanders(rest, reasons, [])


NO_SAMPLES = "a weighted sum of layers, but nothing shows which axis of its result is the samples'"


def _kind(run: Sequence[Call], lineage: Lineage) -> Kind:
    if isinstance(run[0], Sum):
        return "signed"
    return "static" if all(call.node in lineage.constants for call in run) else "softmax"


def _stages(
    runs: Sequence[Sequence[Call]], seen: ObservedPass
) -> tuple[tuple[Stage, ...], dict[str, Found]]:
    """The runs as stages of sites, and how each site was found."""
    totals: Counter[tuple[str, str]] = Counter()
    totals.update((call.module, call.reads) for call in seen.calls if call.readable)
    totals.update({(module, "sum"): count for module, count in seen.sums_in.items()})
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
            if isinstance(fired, Sum):
                axis = fired.values_axis or 0
                site = replace(site, operand=fired.operand, values_axis=axis)
            sites.append(site)
            how = f"observed {fired.function} over axis {fired.axis} of {list(fired.shape)}"
            found[site.name] = Found(how, fired.shape, fired.axis)
        stages.append(Stage(name, _kind(run, seen.lineage), tuple(sites)))
    return tuple(stages), found


def _guess(call: Call) -> str:
    return (
        "the model takes no other number of samples, and nothing shows which axis of the weights "
        f"{list(call.shape)} of {call.module or 'its forward'} runs over the samples: axis "
        f"{call.batch_axis} is assumed. Give example inputs whose samples differ"
    )


def _stage_names(runs: Sequence[Sequence[Call]]) -> list[str]:
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

"""What the sites of a model hand on that was only observed: `skip` puts a module's input in place.

No adapter says what such a model does without a retrieval. But where the module that retrieves
takes a tensor of its output's shape, it can be left out as a whole, and what that costs is known.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ela_probe.adapters.handover import Alternatives, Handover, Passed
from ela_probe.analysis.damage_probe import DamageProbe
from ela_probe.discovery.hooks import Hooks
from ela_probe.discovery.other_inputs import with_one_more_sample
from ela_probe.errors import ProbeError
from ela_probe.forward import call, eval_mode, logits_of, moved, uncompiled, undisturbed, unwrap
from ela_probe.sites import Site, Stage
from ela_probe.system.messages import class_and_first_line
from ela_probe.system.nested_tensors import tensors_of
from ela_probe.system.processes import all_gather, raise_together


def observed_handovers(
    model: nn.Module, stages: Sequence[Stage], inputs: Any, *, labelled: bool = True
) -> tuple[dict[str, Handover], str]:
    """Where the sites of an observed model hand on, and what they hand on when they are skipped.

    The module that retrieves is the one that calls the softmax. Its first output tensor is y; what
    stands for y when the site is skipped is its first positional argument that is a tensor of y's
    shape. All that the module does is left out then, not the retrieval alone.

    Only what a few passes show is taken: the module runs once in a pass and serves one site, its
    output has the samples first, it does not overwrite that input, and a gradient of the model's
    logits comes to it. All sites must be so, but the first of each stage, which no plan skips.

    Under torch.distributed every process calls it, and all get what all of them agree on.

    Args:
        stages: as `discover` found them by observation.
        inputs: a small batch. It is run three times, once of these with a backward pass.
        labelled: whether the batch has labels; without any, nothing is run and none is returned.

    Returns: by site name; and why there is none, in words ("" where there are some).
    """
    model = unwrap(model)
    found, reason = dict[str, Handover](), ""
    with raise_together():
        try:
            if not labelled:
                raise _Unknown("it needs labels")
            with uncompiled(model):
                found = _handovers(model, stages, moved(inputs, model))
        except _Unknown as unknown:
            reason = str(unknown)
    everywhere = all_gather((set(found), reason))
    common = set.intersection(*(sites for sites, _ in everywhere))
    reason = next((why for _, why in everywhere if why), "")
    return {} if reason else {site: h for site, h in found.items() if site in common}, reason


class _Unknown(Exception):
    """What a site hands on without its retrieval can't be told; the message says why."""


class _Run(NamedTuple):
    """A run of a module: the shapes of its output and of what stands for it, if anything."""

    output: tuple[int, ...]
    instead: tuple[int, ...] | None
    overwritten: bool


def _handovers(model: nn.Module, stages: Sequence[Stage], inputs: Any) -> dict[str, Handover]:
    modules = {s.name: _retrieving(model, s) for stage in stages for s in stage.sites}
    skippable = {site.name for stage in stages for site in stage.sites[1:]}
    runs = _runs(model, set(modules.values()), inputs)
    larger = _larger_runs(model, set(modules.values()), inputs)
    shared = Counter(modules.values())
    found = {}
    for site, module in modules.items():
        reason = _reason(module, shared[module], runs[module], larger[module])
        if not reason:
            found[site] = _replaced_by_input(module)
        elif site in skippable:
            raise _Unknown(f"at {site} {reason}")
    reached = _reached(model, found, inputs)
    if unreached := sorted(skippable - reached):
        raise _Unknown(f"no gradient of the logits comes to {unreached[0]}")
    return {site: handover for site, handover in found.items() if site in reached}


def _retrieving(model: nn.Module, site: Site) -> str:
    """The name of the module that calls the softmax of a site; "" where it is the model itself."""
    is_softmax = isinstance(model.get_submodule(site.module), nn.Softmax | nn.Softmax2d)
    return site.module.rpartition(".")[0] if is_softmax else site.module


def _reason(module: str, sites: int, runs: Sequence[_Run], larger: Sequence[_Run]) -> str:
    """Why a module can't be replaced by its input; "" if it can."""
    if not module:
        return "the model itself retrieves, and no part of it can be left out"
    if sites > 1 or len(runs) != 1:
        return (
            f"{module} runs {len(runs)} times in a pass and serves {sites} sites, not once and one"
        )
    (run,) = runs
    if run.instead is None:
        return (
            f"{module} takes no tensor of the shape {list(run.output)} of its output as an "
            "argument by itself"
        )
    if run.overwritten:
        return f"{module} overwrites its input"
    grown = [after.output for after in larger]
    if grown != [(run.output[0] + 1, *run.output[1:])]:
        return f"the output of {module} does not have the samples on its first axis"
    return ""


def _runs(model: nn.Module, modules: Collection[str], inputs: Any) -> dict[str, list[_Run]]:
    """Every run of some modules in a pass in eval mode, without gradients."""
    versions: list[list[int]] = []
    runs: dict[str, list[_Run]] = {name: [] for name in modules}

    def before(module: nn.Module, arguments: tuple[Any, ...], options: Any) -> None:
        versions.append([value._version for value in arguments if isinstance(value, Tensor)])

    def after(name: str, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        tensors = [value for value in arguments if isinstance(value, Tensor)]
        overwritten = [tensor._version for tensor in tensors] != versions.pop()
        y = next(tensors_of(output), None)
        if y is None or not y.dim():
            runs[name].append(_Run((0,), None, overwritten))
            return
        x = _standing_for(y, tensors)
        shape = None if x is None else tuple(x.shape)
        runs[name].append(_Run(tuple(y.shape), shape, overwritten))

    hooks = Hooks()
    try:
        for name in modules:
            hooks.before(model.get_submodule(name), before)
            hooks.after(model.get_submodule(name), partial(after, name))
        with undisturbed(model):
            call(model, inputs)
    finally:
        hooks.remove()
    return runs


def _larger_runs(model: nn.Module, modules: Collection[str], inputs: Any) -> dict[str, list[_Run]]:
    """The runs with one more sample; none where the model takes no other number of them."""
    for larger in with_one_more_sample(inputs, batch_axis=0):
        try:
            return _runs(model, modules, larger)
        except Exception:  # it takes this number of samples only
            continue
    return {name: [] for name in modules}


def _standing_for(y: Tensor, arguments: Sequence[Tensor]) -> Tensor | None:
    return next((x for x in arguments if x.shape == y.shape and x.is_floating_point()), None)


def _replaced_by_input(module: str) -> Handover:
    def tensors(passed: Mapping[str, Passed]) -> list[Tensor]:
        of_module = passed[module]
        y = of_module.outputs[0]
        x = _standing_for(y, of_module.arguments)
        if x is None:
            raise ProbeError(
                f"{module} took no tensor of the shape {list(y.shape)} of its output, as it did in "
                "the first batch, so its damage can't be measured; leave the damage out "
                "(--no-damage)"
            )
        return [x.clone(), y.clone()]  # the model may overwrite either later

    return Handover(module, ("skip",), (module,), tensors, lambda x, y: Alternatives(y, (x,)))


def _reached(model: nn.Module, handovers: Mapping[str, Handover], inputs: Any) -> set[str]:
    """The sites that a gradient of the logits comes to. Raises _Unknown."""
    try:
        with eval_mode(model), DamageProbe(model, handovers) as probe, torch.enable_grad():
            logits = logits_of(call(model, inputs))
            if logits is None:
                raise _Unknown("the model returns no logits")
            probe.backward(logits.float().flatten(1).sum(dim=1))
    except (RuntimeError, ProbeError) as error:
        raise _Unknown(
            f"the model can't be differentiated ({class_and_first_line(error)})"
        ) from error
    return probe.reached

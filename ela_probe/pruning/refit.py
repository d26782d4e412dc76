"""Fitting the stand-ins of a plan one after the other, each on the model pruned so far.

An analysis fits a stand-in as if it were the only one. In a plan, what a site gets was already
changed by those before it. Here each stand-in is fitted, in forward order, to what the unpruned
model hands on at its site, from what the model that is pruned before this site gets there.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ela_probe.adapters.handover import Alternatives, Handover
from ela_probe.analysis.damage_probe import handovers_of
from ela_probe.analysis.handover_hooks import HandoverHooks
from ela_probe.analysis.stand_ins import (
    FIT_SAMPLES,
    NormalEquations,
    inputs_of_first,
    slices,
)
from ela_probe.discovery.discover import discover
from ela_probe.errors import DataError
from ela_probe.forward import call, undisturbed
from ela_probe.pruning.plan import SkipPlan, encode_stand_in
from ela_probe.pruning.prune import prune
from ela_probe.system.progress import track


def refit_stand_ins(
    model: nn.Module,
    plan: SkipPlan,
    batches: Iterable[Any],
    *,
    samples: int = FIT_SAMPLES,
    progress: bool = True,
) -> SkipPlan:
    """The plan with stand-ins that are fitted to each other; it takes 2 passes for each of them.

    Args:
        model: the unpruned model; it is run in eval mode, on its device.
        batches: inputs, or pairs of inputs and labels, as `analyze` takes them. At most `samples`
            samples are used.

    Raises:
        PlanError: as `prune`. DataError: no batches.
    """
    if not plan.stand_ins:
        return plan
    inputs = list(inputs_of_first(model, batches, samples))
    if not inputs:
        raise DataError("no batches to fit stand-ins to; expected at least one")
    sites = [site.name for stage in plan.stages for site in stage.sites if site.action != "keep"]
    fitted: dict[str, NDArray[np.float32]] = {}
    for position, site in enumerate(
        track(sites, "fitting stand-ins to each other", total=len(sites), progress=progress)
    ):
        if site not in plan.stand_ins:
            continue
        before = prune(model, _changing(plan, sites[:position], fitted)) if position else model
        original = handovers_of(model, discover(model))[site]
        handover = handovers_of(before, discover(before))[site]
        sums: NormalEquations | None = None
        for given in inputs:
            wanted = _handed_on(model, site, original, given).output
            terms = _handed_on(before, site, handover, given).terms
            for output, *own in slices([wanted, *terms]):
                both = Alternatives(output, tuple(own))
                found = NormalEquations.of(both, handover.channel_axis)
                sums = found if sums is None else sums + found
        assert sums is not None
        fitted[site] = sums.solve(has_shift=handover.has_shift).numpy()
    return _changing(plan, sites, fitted, as_planned=True)


def _handed_on(model: nn.Module, site: str, handover: Handover, given: Any) -> Alternatives:
    """What a site hands on in one pass."""
    passed: list[Alternatives] = []

    def arrive(_: str, tensors: Any, y: Tensor) -> None:
        passed.append(handover.alternatives(*tensors))

    with undisturbed(model), HandoverHooks(model, {site: handover}, arrive):
        call(model, given)
    return passed[0]


def _changing(
    plan: SkipPlan,
    sites: list[str],
    fitted: dict[str, NDArray[np.float32]],
    *,
    as_planned: bool = False,
) -> SkipPlan:
    """The plan with only these sites changed, and with the stand-ins fitted so far.

    `drop` becomes `skip` (unless `as_planned`), since later sites may still read the source.
    """
    stages = []
    for stage in plan.stages:
        own = []
        for site in stage.sites:
            changes: dict[str, Any] = {}
            if site.name not in sites:
                changes = {"action": "keep", "stand_in": None, "damage": None}
            elif site.name in fitted:
                changes = {"stand_in": encode_stand_in(fitted[site.name])}
            elif site.action == "drop" and not as_planned:
                changes = {"action": "skip"}
            own.append(site.model_copy(update=changes))
        stages.append(stage.model_copy(update={"sites": tuple(own)}))
    return SkipPlan.model_validate(plan.model_copy(update={"stages": tuple(stages)}).model_dump())

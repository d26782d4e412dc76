"""Applying a skip plan: the skipped retrievals and their parameters are physically removed."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ela_probe.adapters.registry import Adapter, StandInAdapter, adapter_for, cannot_prune
from ela_probe.discovery.discover import discover
from ela_probe.errors import PlanError
from ela_probe.forward import copied, uncompiled, unwrap
from ela_probe.pruning.plan import SkipPlan
from ela_probe.sites import Action, Stage, drop_unread


def prune(model: nn.Module, plan: SkipPlan) -> nn.Module:
    """A copy of the model without the retrievals that the plan skips.

    Prune first. Then build the optimizer, and wrap the model for DDP or compile it: of a compiled
    model the copy is uncompiled. A skipped site whose source no later retrieval reads is dropped.

    Raises:
        PlanError: no adapter knows the model, the plan was made for other sites (the message lists
            the differences), or the model's adapter refuses an action.
        ModelError: the model has no layer attention, was scripted, or can't be copied.
    """
    model = unwrap(model)
    with uncompiled(model):
        if adapter_for(model) is None:
            raise cannot_prune(model)
        found = discover(model)
        plan.check_sites(found.stages)
        pruned = copied(model)
    found.adapter.apply(pruned, actions_of(plan, found.stages))
    put_stand_ins(pruned, found.adapter, plan.stand_ins)
    return pruned


def put_stand_ins(
    model: nn.Module, adapter: Adapter, stand_ins: Mapping[str, NDArray[np.float32]]
) -> None:
    """Put stand-ins in place of removed retrievals, with the type and device of the parameters.

    Raises:
        PlanError: the adapter has no stand-ins.
    """
    like = next(model.parameters(), None)
    for site, coefficients in stand_ins.items():
        if not isinstance(adapter, StandInAdapter):
            raise PlanError(
                f"{site}: got the action 'affine', but the adapter {adapter.name} has no "
                "stand-ins; use skip or drop"
            )
        values = torch.from_numpy(coefficients.copy())
        adapter.stand_in(model, site, values if like is None else values.to(like))


def actions_of(plan: SkipPlan, stages: Sequence[Stage]) -> dict[str, Action]:
    """What the adapter does at each site: `drop` for a skipped one whose source nothing reads.

    A site with a stand-in is skipped; the stand-in comes afterwards.
    """
    actions: dict[str, Action] = {}
    for planned, stage in zip(plan.stages, stages, strict=True):
        chosen: list[Action] = [
            "skip" if site.action == "affine" else site.action for site in planned.sites
        ]
        names = [site.name for site in planned.sites]
        done = drop_unread(chosen, carried_over=stage.carried_over)
        actions.update(zip(names, done, strict=True))
    return actions

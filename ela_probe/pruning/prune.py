"""Applying a skip plan: the skipped retrievals and their parameters are physically removed."""

from collections.abc import Sequence

from torch import nn

from ela_probe.adapters.registry import adapter_for, cannot_prune
from ela_probe.discovery.discover import discover
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
    return pruned


def actions_of(plan: SkipPlan, stages: Sequence[Stage]) -> dict[str, Action]:
    """The action that `prune` applies to each site: `drop` for a skipped one that nothing reads."""
    actions: dict[str, Action] = {}
    for planned, stage in zip(plan.stages, stages, strict=True):
        chosen = [site.action for site in planned.sites]
        names = [site.name for site in planned.sites]
        done = drop_unread(chosen, carried_over=stage.carried_over)
        actions.update(zip(names, done, strict=True))
    return actions

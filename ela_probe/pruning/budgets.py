"""The plans of the default planner for every number of skipped retrievals, from one programme."""

from ela_probe.analysis.damage import REMOVING
from ela_probe.analysis.ebqm import Target
from ela_probe.analysis.result import Analysis
from ela_probe.pruning.cost_model import CostModel
from ela_probe.pruning.damage_budget import cheapest_actions, damage_charges
from ela_probe.pruning.plan import Constraints, SkipPlan
from ela_probe.pruning.planners import (
    as_plan,
    damage_decisions,
    skip_decisions,
    skippable,
)
from ela_probe.pruning.site_budget import combined_optima


def plans_by_count(
    analysis: Analysis,
    *,
    constraints: Constraints = Constraints(),
    costs: CostModel | None = None,
) -> dict[int, SkipPlan]:
    """For every number of retrievals that may be skipped, from 0 up, the plan that skips so many.

    The plan for k of N retrievals is what `make_plan(analysis, skip=k / N)` returns: the least
    predicted loss change where damage was measured, else the least divergence. Without damage and
    with `signed` weights, which have no divergence, only the plan is there that keeps everything.

    Args:
        costs: measured on this model; each plan then records the time that they predict.

    Raises:
        PlanError: the costs are of another model, or lack an action of a plan.
    """
    if costs is not None:
        costs.check_sites([part.stage for part in analysis.stages])
    sites = sum(len(part.stage.sites) for part in analysis.stages)
    choices = cheapest_actions(analysis, REMOVING)
    if analysis.has_damage:
        everywhere = [range(len(stage)) for stage in choices]
        best = combined_optima(damage_charges(choices), constraints, may=everywhere)
    elif "l2" in analysis.measures:
        best = {0: (0.0, [() for _ in analysis.stages])}
    else:
        charges = [part.divergences["kl"] for part in analysis.stages]
        best = combined_optima(charges, constraints, may=[skippable(p) for p in analysis.stages])
    plans = {}
    for count, (_, skipped) in sorted(best.items()):
        stages = zip(analysis.stages, skipped, choices, strict=True)
        plans[count] = as_plan(
            analysis,
            [
                damage_decisions(part, {t: own[t] for t in positions})
                if analysis.has_damage
                else skip_decisions(part, positions, "skip")
                for part, positions, own in stages
            ],
            target=Target(skip=min(max(count / sites, 0.01), 0.99), concentration=4.0),
            constraints=constraints,
            planner="damage" if analysis.has_damage else "budget",
            costs=costs,
        )
    return plans

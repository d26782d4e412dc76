"""Plans of equal share by every planner, to hold against each other."""

from ela_probe.analysis.result import Analysis
from ela_probe.pruning.plan import SkipPlan
from ela_probe.pruning.planners import SkipAction, make_plan


def candidate_plans(analysis: Analysis, skip: float, random: int) -> dict[str, SkipPlan]:
    """Plans for the same share by every planner that needs no further measurement, by name.

    Args:
        random: how many random plans of each action.
    """
    actions: list[SkipAction] = ["skip"]
    if any(part.damage is not None and any(s is not None for s in part.damage.stand_ins)
           for part in analysis.stages):  # fmt: skip
        actions.append("affine")
    plans = {"unpruned": make_plan(analysis, skip=0.0, planner="budget")}
    if analysis.has_damage:
        plans["damage"] = make_plan(analysis, skip=skip, planner="damage")
    for action in actions:
        if analysis.has_damage:
            plans[f"damage-{action}"] = make_plan(
                analysis, skip=skip, planner="damage", action=action
            )
        for planner in ("budget", "score", "alternate", "deepest"):
            plans[f"{planner}-{action}"] = make_plan(
                analysis, skip=skip, planner=planner, action=action
            )
        for seed in range(random):
            plans[f"random-{action}-{seed}"] = make_plan(
                analysis, skip=skip, planner="random", action=action, seed=seed
            )
    return plans

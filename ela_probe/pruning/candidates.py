"""Plans of equal share or equal time, to hold against each other."""

import numpy as np

from ela_probe.analysis.ebqm import Target
from ela_probe.analysis.result import Analysis
from ela_probe.errors import PlanError
from ela_probe.pruning.cost_model import CostModel
from ela_probe.pruning.plan import Constraints, SkipPlan
from ela_probe.pruning.planners import SkipAction, as_plan, make_plan, skip_decisions


def candidate_plans(analysis: Analysis, skip: float, random: int) -> dict[str, SkipPlan]:
    """Plans for the same share by every planner that needs no further measurement, by name.

    Args:
        random: how many random plans of each action.
    """
    actions = _removals(analysis)
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


def plans_for_time(
    analysis: Analysis, costs: CostModel, time: float, random: int
) -> dict[str, SkipPlan]:
    """The plan of least damage for a share of the step's time, and random ones, by name.

    Args:
        random: how many random plans of each action.

    Raises:
        PlanError: no plan takes so little time, or the analysis has no damage.
    """
    plans = {
        "damage-time": make_plan(analysis, planner="damage", costs=costs, time=time),
    }
    for action in _removals(analysis):
        for seed in range(random):
            plans[f"random-{action}-time-{seed}"] = random_plan_for_time(
                analysis, costs, time, action, seed=seed
            )
    return plans


def random_plan_for_time(
    analysis: Analysis, costs: CostModel, time: float, action: SkipAction, *, seed: int
) -> SkipPlan:
    """Retrievals removed in random order until the predicted step takes `time` of the unpruned one.

    The first retrieval of each stage is kept, as in every plan for a time: what it costs is not
    measured.

    Raises:
        PlanError: all removed still take longer.
    """
    places = [
        (s, t)
        for s, part in enumerate(analysis.stages)
        for t in range(1, len(part.stage.sites))
        if action != "affine" or (part.damage is not None and part.damage.stand_ins[t] is not None)
    ]
    removed: list[list[int]] = [[] for _ in analysis.stages]
    for place in np.random.default_rng(seed).permutation(len(places)):
        stage, site = places[place]
        removed[stage].append(site)
        decided = [
            skip_decisions(part, sorted(own), action)
            for part, own in zip(analysis.stages, removed, strict=True)
        ]
        plan = as_plan(
            analysis, decided, target=Target(), constraints=Constraints(), planner="random",
            seed=seed, costs=costs, time=time,
        )  # fmt: skip
        ratio = plan.origin.predicted_ratio
        if ratio is not None and ratio <= time:
            return plan
    raise PlanError(
        f"no random plan with the action {action!r} takes {time:g} of the unpruned step's time; "
        "ask for more time"
    )


def _removals(analysis: Analysis) -> list[SkipAction]:
    """`skip`, and `affine` where the analysis has stand-ins."""
    known = any(
        part.damage is not None and any(s is not None for s in part.damage.stand_ins)
        for part in analysis.stages
    )
    return ["skip", "affine"] if known else ["skip"]

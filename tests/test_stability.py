"""The stability of a plan: closed-form answers, and plans for which it means nothing."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from ela_probe.analysis.damage import MEASURED, StageDamage
from ela_probe.analysis.result import Analysis
from ela_probe.errors import OptionError, PlanError
from ela_probe.pruning.plan import SkipPlan
from ela_probe.pruning.planners import Planner, SkipAction, make_plan
from ela_probe.pruning.stability import plan_stability
from tests.support.costs import PRICES, costs_of, priced
from tests.support.synthetic_analyses import make_analysis

ANALYSIS = make_analysis((4, 3), samples=50)


def with_damage(means: list[float], errors: list[float], *, samples: int = 100) -> Analysis:
    """An analysis of one stage in which skipping has these damages, in nats."""
    sums = np.full((len(means), len(MEASURED), 4), np.nan)
    for t, (mean, error) in enumerate(zip(means, errors, strict=True)):
        square = mean**2 + (samples - 1) * error**2
        sums[t, 0] = [0.0, 0.0, samples * mean, samples * square]
    damage = StageDamage(samples, sums, np.full(len(means), np.nan), (None,) * len(means))
    analysis = make_analysis((len(means),), samples=samples)
    part = dataclasses.replace(analysis.stages[0], damage=damage)
    return dataclasses.replace(analysis, stages=(part,))


def test_the_cheaper_of_two_sites_stays_as_often_as_the_normal_distribution_says() -> None:
    analysis = with_damage([1.0, 0.10, 0.13], [0.0, 0.03, 0.04])
    plan = make_plan(analysis, skip=1 / 3)
    first, cheap, dear = plan.actions
    found = plan_stability(analysis, plan, resamples=400)
    expected = float(stats.norm.cdf(0.03 / math.hypot(0.03, 0.04)))
    assert plan.skipped == [cheap]
    assert found[first] == 1.0
    assert found[cheap] == found[dear]
    assert found[cheap] == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 400))


@pytest.mark.parametrize("planner", ["damage", "budget", "threshold"])
def test_without_errors_every_action_stays(planner: Planner) -> None:
    analysis = with_damage([1.0, 0.1, 0.2, 0.3], [0.0] * 4)
    exact = {
        name: np.zeros_like(value) if name.endswith("_se") else value
        for name, value in analysis.stages[0].divergences.items()
    }
    part = dataclasses.replace(analysis.stages[0], divergences=exact)
    analysis = dataclasses.replace(analysis, stages=(part,))
    threshold = 0.05 if planner == "threshold" else None
    plan = make_plan(analysis, skip=0.5, planner=planner, threshold=threshold)
    found = plan_stability(analysis, plan, resamples=5, threshold=threshold)
    assert found == dict.fromkeys(plan.actions, 1.0)


@pytest.mark.parametrize("planner", ["budget", "score"])
@pytest.mark.parametrize("action", ["skip", "drop", "recur"])
def test_the_action_of_the_plan_is_planned_again(action: SkipAction, planner: Planner) -> None:
    plan = make_plan(ANALYSIS, skip=0.3, planner=planner, action=action)
    found = plan_stability(ANALYSIS, plan, resamples=10)
    assert found.keys() == plan.actions.keys()
    assert all(0 <= share <= 1 for share in found.values())
    assert max(found.values()) == 1.0  # the first of every stage is always kept


def test_a_plan_for_a_time_is_planned_again_with_its_costs() -> None:
    stages = [part.stage for part in ANALYSIS.stages]
    costs = costs_of([priced(stage, PRICES) for stage in stages], of=stages)
    plan = make_plan(ANALYSIS, costs=costs, time=0.8)
    assert plan.changes
    assert max(plan_stability(ANALYSIS, plan, resamples=4, costs=costs).values()) == 1.0


def test_the_same_seed_gives_the_same_shares() -> None:
    plan = make_plan(ANALYSIS, skip=0.5)
    one, same = (plan_stability(ANALYSIS, plan, resamples=10, seed=4) for _ in range(2))
    assert one == same


@pytest.mark.parametrize("planner", ["random", "alternate", "deepest"])
def test_planners_that_read_nothing_have_no_stability(planner: Planner) -> None:
    with pytest.raises(PlanError, match=f"made by '{planner}', which reads nothing"):
        plan_stability(ANALYSIS, make_plan(ANALYSIS, planner=planner))


def test_what_a_plan_does_not_record_is_asked_for() -> None:
    plan = make_plan(ANALYSIS, planner="threshold", threshold=0.1)
    with pytest.raises(PlanError, match="give the threshold in nats"):
        plan_stability(ANALYSIS, plan)
    timed = plan.model_copy(
        update={"origin": plan.origin.model_copy(update={"planner": "cost", "time_budget": 0.8})}
    )
    with pytest.raises(PlanError, match="give the costs that it was made with"):
        plan_stability(ANALYSIS, timed)


def test_an_edited_plan_is_refused() -> None:
    plan = make_plan(ANALYSIS, skip=0.3)
    kept = next(name for name in plan.actions if name not in plan.skipped and name[-11] != "0")
    edited = SkipPlan.for_actions(
        [part.stage for part in ANALYSIS.stages],
        {kept: "skip"},
        origin=plan.origin,
        target=plan.target,
    )
    with pytest.raises(PlanError, match="does not give this plan on this analysis"):
        plan_stability(ANALYSIS, edited, resamples=2)


def test_other_sites_one_sample_and_one_resample_are_refused() -> None:
    plan = make_plan(ANALYSIS, skip=0.3)
    with pytest.raises(PlanError, match="made for another model"):
        plan_stability(make_analysis((3,)), plan)
    with pytest.raises(OptionError, match="at least 2"):
        plan_stability(ANALYSIS, plan, resamples=1)
    single = make_analysis((4,), samples=1)
    with pytest.raises(PlanError, match="standard errors are unknown"):
        plan_stability(single, make_plan(single, skip=0.3), resamples=2)

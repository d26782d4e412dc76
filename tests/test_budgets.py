"""The plans for every budget: those of the default planner, one after the other."""

import pytest

from ela_probe.analysis.result import Analysis
from ela_probe.errors import PlanError
from ela_probe.pruning.budgets import plans_by_count
from ela_probe.pruning.plan import Constraints
from ela_probe.pruning.planners import make_plan
from tests.support.costs import PRICES, costs_of, priced
from tests.support.synthetic_analyses import make_analysis, with_damage

PLAIN = make_analysis((5, 4, 1), samples=40)
ANALYSES = {"divergence": PLAIN, "damage": with_damage(PLAIN)}


@pytest.mark.parametrize("analysis", ANALYSES.values(), ids=ANALYSES)
@pytest.mark.parametrize("guards", [Constraints(), Constraints(max_run=1, min_keep=2)], ids=str)
def test_every_plan_is_that_of_the_default_planner(analysis: Analysis, guards: Constraints) -> None:
    plans = plans_by_count(analysis, constraints=guards)
    most = max(plans)
    assert list(plans) == list(range(most + 1))
    for count, plan in plans.items():
        assert plan == make_plan(analysis, skip=count / 10, constraints=guards)
        assert len(plan.changes) == count
    with pytest.raises(PlanError, match=f"allow {most} at most"):
        make_plan(analysis, skip=(most + 1) / 10, constraints=guards)


def test_with_costs_every_plan_records_its_time() -> None:
    stages = [part.stage for part in PLAIN.stages]
    costs = costs_of([priced(stage, PRICES) for stage in stages], of=stages)
    for plan in plans_by_count(PLAIN, costs=costs).values():
        assert plan.origin.predicted_seconds == costs.predict(plan.actions)
        assert plan.origin.predicted_ratio == costs.predict(plan.actions) / costs.predict({})


def test_costs_of_another_model_are_refused() -> None:
    stages = [part.stage for part in make_analysis((3,), samples=5).stages]
    with pytest.raises(PlanError, match="measured on another model"):
        plans_by_count(PLAIN, costs=costs_of([priced(s, PRICES) for s in stages], of=stages))

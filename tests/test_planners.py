"""The planners: optimality, guards, and what a plan says."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ela_probe.errors import PlanError
from ela_probe.pruning.plan import Constraints
from ela_probe.pruning.planners import PLANNERS, make_plan
from ela_probe.pruning.site_budget import below_threshold, stage_optima, within_budget
from tests.support.planning import allowed, analysis_of, cost, guards, random_charge


@pytest.mark.parametrize("sites", range(1, 11))
@given(seed=st.integers(0, 2**31), constraints=guards)
def test_the_budget_planner_equals_brute_force(
    sites: int, seed: int, constraints: Constraints
) -> None:
    charge = random_charge(sites, seed)
    optima = stage_optima(charge, constraints)
    for budget in range(sites):
        candidates = [
            skipped
            for skipped in itertools.combinations(range(1, sites), budget)
            if allowed(sites, skipped, constraints)
        ]
        assert (budget in optima) == bool(candidates)
        if candidates:
            best = min(cost(charge, skipped) for skipped in candidates)
            found = optima[budget]
            assert found[0] == pytest.approx(best, abs=1e-12)
            assert cost(charge, found[1]) == pytest.approx(best, abs=1e-12)
            assert found[1] in candidates


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(0, 2**31), guards, st.data()
)
def test_a_budget_over_stages_equals_brute_force(
    sizes: list[int], seed: int, constraints: Constraints, data: st.DataObject
) -> None:
    charges = [random_charge(size, seed + s) for s, size in enumerate(sizes)]
    budget = data.draw(st.integers(0, sum(sizes)))
    sets = [
        [
            skipped
            for k in range(size)
            for skipped in itertools.combinations(range(1, size), k)
            if allowed(size, skipped, constraints)
        ]
        for size in sizes
    ]
    costs = [
        sum(cost(charge, skipped) for charge, skipped in zip(charges, choice, strict=True))
        for choice in itertools.product(*sets)
        if sum(map(len, choice)) == budget
    ]
    if not costs:
        with pytest.raises(PlanError, match="at most"):
            within_budget(charges, budget, constraints)
        return
    chosen = within_budget(charges, budget, constraints)
    total = sum(cost(charge, skipped) for charge, skipped in zip(charges, chosen, strict=True))
    assert total == pytest.approx(min(costs), abs=1e-12)


@given(st.integers(1, 12), st.integers(0, 2**31), st.floats(0, 3), guards)
def test_the_threshold_planner_skips_only_below_it(
    sites: int, seed: int, threshold: float, constraints: Constraints
) -> None:
    charge = random_charge(sites, seed)
    skipped = below_threshold(charge, threshold, constraints)
    assert allowed(sites, skipped, constraints)
    assert 0 not in skipped
    kept = 0
    for t in range(1, sites):
        if t in skipped:
            assert charge[kept, t] < threshold
        else:
            kept = t


@pytest.mark.parametrize(
    "planner", [p for p in PLANNERS if p not in ("threshold", "cost", "damage")]
)
@pytest.mark.parametrize("skip", [0.0, 0.25, 0.5, 0.75])
def test_every_planner_skips_the_same_share_and_never_a_first_site(
    planner: str, skip: float
) -> None:
    plan = make_plan(analysis_of([9, 9, 9]), skip=skip, planner=planner)  # type: ignore[arg-type]
    assert len(plan.skipped) == math.floor(27 * skip + 0.5)
    assert all(stage.sites[0].action == "keep" for stage in plan.stages)


def test_no_baseline_is_charged_less_than_the_budget_plan() -> None:
    analysis = analysis_of([8, 8])
    best = make_plan(analysis, skip=0.5).charge
    assert best is not None
    for planner in ("score", "random", "alternate", "deepest"):
        charge = make_plan(analysis, skip=0.5, planner=planner).charge
        assert charge is not None
        assert best <= charge + 1e-12


def test_the_baselines_are_what_they_say() -> None:
    analysis = analysis_of([5, 5])
    deepest = make_plan(analysis, skip=0.3, planner="deepest")
    assert deepest.skipped == ["s1.2", "s1.3", "s1.4"]
    every_other = make_plan(analysis, skip=0.4, planner="alternate")
    assert every_other.skipped == ["s0.2", "s0.4", "s1.2", "s1.4"]
    draws = {
        tuple(make_plan(analysis, skip=0.3, planner="random", seed=s).skipped) for s in range(20)
    }
    assert len(draws) > 10
    scores = {site.name: site.score for stage in deepest.stages for site in stage.sites[1:]}
    by_score = make_plan(analysis, skip=0.3, planner="score")
    highest = sorted(scores, key=lambda name: -(scores[name] or 0))[:3]
    assert sorted(by_score.skipped) == sorted(highest)


def test_a_skipped_tail_is_dropped_and_the_rest_is_as_asked() -> None:
    plan = make_plan(analysis_of([6]), skip=0.5, planner="deepest")
    assert [s.action for s in plan.stages[0].sites] == ["keep"] * 3 + ["drop"] * 3
    plan = make_plan(analysis_of([6]), skip=0.5, planner="alternate", action="drop")
    assert set(plan.actions.values()) == {"keep", "drop"}


def test_a_skipped_site_refers_to_the_last_kept_one() -> None:
    analysis = analysis_of([6])
    plan = make_plan(analysis, skip=0.34, planner="random", seed=4)
    kept, matrix = 0, analysis.stages[0].divergences["kl"]
    for t, site in enumerate(plan.stages[0].sites):
        if t == 0:
            assert site.reference is None
        elif site.action == "keep":
            assert site.reference == f"s0.{t - 1}"
            kept = t
        else:
            assert site.reference == f"s0.{kept}"
            assert site.kl is not None
            assert site.kl.mean == matrix[kept, t]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip": 1.0}, "less than 1"),
        ({"skip": -0.1}, "at least 0"),
        ({"skip": 0.9}, r"4 at most; ask for a share of 0\.66"),
        ({"skip": 0.5, "constraints": Constraints(min_keep=3)}, "0 at most"),
        ({"planner": "threshold"}, "needs a threshold"),
        ({"planner": "budget", "threshold": 0.1}, "no other takes one"),
        ({"planner": "best"}, "no planner is called 'best'"),
    ],
)
def test_what_cannot_be_planned_is_said(options: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        make_plan(analysis_of([3, 3]), **options)  # type: ignore[arg-type]

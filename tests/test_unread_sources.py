"""What no later retrieval reads is dropped; what the next stage reads, as KCLA's does, never is."""

import dataclasses
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ela_probe.adapters.kcla import RunningSource
from ela_probe.adapters.replacements import NoSource
from ela_probe.analysis.result import Analysis
from ela_probe.discovery.discover import discover
from ela_probe.errors import PlanError
from ela_probe.pruning.plan import Constraints, SkipPlan
from ela_probe.pruning.planners import PLANNERS, make_plan
from ela_probe.pruning.prune import actions_of, prune
from ela_probe.sites import Action, drop_unread
from ela_probe.training.ela.nested_plans import plan_skipping
from tests.support.costs import PRICES, costs_of, priced
from tests.support.lookalikes_stateful import NormNetwork
from tests.support.planning import analysis_of
from tests.support.pruning import analysed

ACTIONS: tuple[Action, ...] = get_args(Action)


@given(st.lists(st.sampled_from(ACTIONS), max_size=8), st.booleans())
def test_a_skip_becomes_a_drop_where_no_reader_is_left(
    rest: list[Action], carried_over: bool
) -> None:
    actions: list[Action] = ["keep", *rest]
    for t, (before, after) in enumerate(
        zip(actions, drop_unread(actions, carried_over=carried_over), strict=True)
    ):
        readers = [a for a in actions[t + 1 :] if a in ("keep", "recur")]
        unread = not readers and not carried_over
        assert after == ("drop" if before == "skip" and unread else before)


def like_kcla(sizes: list[int], seed: int = 0) -> Analysis:
    """Every stage but the last carries its sources over to the next."""
    whole = analysis_of(sizes, seed)
    return dataclasses.replace(
        whole,
        stages=tuple(
            dataclasses.replace(
                part, stage=dataclasses.replace(part.stage, carried_over=s < len(sizes) - 1)
            )
            for s, part in enumerate(whole.stages)
        ),
    )


def planned(analysis: Analysis, planner: str, seed: int) -> SkipPlan:
    """About half of the retrievals, or of the time."""
    stages = [part.stage for part in analysis.stages]
    if planner == "cost":
        parts = [priced(stage, PRICES, carried_over=stage.carried_over) for stage in stages]
        costs = costs_of(parts, of=stages)
        return make_plan(analysis, planner="cost", costs=costs, time=0.5)
    threshold = 3.0 if planner == "threshold" else None
    return make_plan(analysis, skip=0.5, planner=planner, threshold=threshold, seed=seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("planner", sorted(set(PLANNERS) - {"damage"}))
@pytest.mark.parametrize("seed", range(3))
def test_no_planner_drops_what_the_next_stage_reads(planner: str, seed: int) -> None:
    analysis = like_kcla([6, 6, 6], seed)
    plan = planned(analysis, planner, seed)
    assert plan.changes
    assert all(site.action != "drop" for stage in plan.stages[:-1] for site in stage.sites)


@pytest.mark.parametrize("planner", sorted(set(PLANNERS) - {"damage"}))
@pytest.mark.parametrize("kcla", [True, False])
def test_a_plan_says_what_prune_does(planner: str, kcla: bool) -> None:
    analysis = (like_kcla if kcla else analysis_of)([6, 6], 1)
    plan = planned(analysis, planner, seed=1)
    assert actions_of(plan, [part.stage for part in analysis.stages]) == plan.actions


def test_the_plans_of_a_training_leave_carried_sources_too() -> None:
    analysis = like_kcla([4, 4])
    plan = plan_skipping(
        frozenset({"s0.3", "s1.3"}),
        analysis,
        planner="budget",
        action="skip",
        constraints=Constraints(),
        epoch=1,
        last=None,
    )
    assert plan.changes == {"s0.3": "skip", "s1.3": "drop"}


@torch.no_grad()
def test_a_planned_kcla_network_keeps_the_sums_that_its_next_stage_reads() -> None:
    model = NormNetwork().eval()
    stages = discover(model).stages
    assert [stage.carried_over for stage in stages][-1:] == [False]
    assert any(stage.carried_over for stage in stages)
    guards = Constraints(min_keep=len(stages[0].sites) - 1)
    plan = make_plan(
        analysed(model),
        skip=len(stages) / sum(len(s.sites) for s in stages),
        planner="deepest",
        constraints=guards,
    )  # the last site of each stage
    pruned = prune(model, plan)
    for stage in stages:
        left = pruned.get_submodule(stage.sites[-1].name)
        assert isinstance(left, RunningSource if stage.carried_over else NoSource)


def test_a_plan_for_actions_is_that_of_the_model_and_refuses_unknown_names() -> None:
    stages = [part.stage for part in analysis_of([3, 2]).stages]
    plan = SkipPlan.for_actions(stages, {"s0.1": "recur", "s1.1": "drop"})
    plan.check_sites(stages)
    assert plan.changes == {"s0.1": "recur", "s1.1": "drop"}
    assert SkipPlan.parse(plan.model_dump_json()) == plan
    with pytest.raises(PlanError, match=r"no site is called 's9\.0'; expected one of s0\.0, s0\.1"):
        SkipPlan.for_actions(stages, {"s9.0": "skip"})
    with pytest.raises(PlanError, match="first site of its stage"):
        SkipPlan.for_actions(stages, {"s0.0": "skip"})

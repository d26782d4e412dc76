"""Costs and the planner that spends them: closed forms, and brute force over all plans."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ela_probe import AttentionProbe, create_model, discover, prune
from ela_probe.errors import ModelError, PlanError
from ela_probe.pruning import time_budget
from ela_probe.pruning.cost_model import CostModel, Seconds, StageCosts, Terms
from ela_probe.pruning.measure_costs import (
    fit_terms,
    measure_costs,
    plans_to_time,
    possible_actions,
)
from ela_probe.pruning.plan import Constraints, SkipPlan
from ela_probe.pruning.planners import make_plan
from ela_probe.pruning.time_budget import Charges, stage_frontier, within_time
from ela_probe.sites import Action
from tests.support.costs import ALL_ACTIONS, PRICES, costs_of, priced, seconds
from tests.support.networks import settled
from tests.support.planning import analysis_of, guards

positive = st.floats(0.01, 1.0)


def flat(stages: list[StageCosts] | tuple[StageCosts, ...], actions: tuple[Action, ...]) -> dict:
    names = [site.name for stage in stages for site in stage.sites]
    return dict(zip(names, actions, strict=True))


def charge_of(charges: Charges, actions: tuple[Action, ...]) -> float:
    """From the definitions, backwards: nothing is lost by a drop that no later site follows."""
    total = 0.0
    for t in range(1, len(actions)):
        i = max(s for s in range(t) if actions[s] in ("keep", "recur"))
        if actions[t] == "recur":
            total += charges.recur[i, t]
        elif actions[t] != "keep":
            total += charges.skip[i, t]
            if actions[t] == "drop" and {"keep", "recur"} & set(actions[t:]):
                total += charges.lost[t]
    return total


def allowed(stage: StageCosts, actions: tuple[Action, ...], constraints: Constraints) -> bool:
    formed = [a in ("keep", "recur") for a in actions]
    runs = [len(list(group)) for made, group in itertools.groupby(formed) if not made]
    follows = all(
        action != "recur" or formed[t - 1] or stage.recur_after_skip
        for t, action in enumerate(actions)
    )
    return (
        follows
        and max(runs, default=0) <= (constraints.max_run or len(actions))
        and actions.count("keep") >= min(constraints.min_keep, len(actions))
    )


@settings(max_examples=40)
@given(
    st.integers(1, 5),
    st.tuples(*[positive] * 5),
    st.integers(0, 2**31),
    guards,
    st.booleans(),
)
def test_the_frontier_is_all_that_brute_force_leaves_unbeaten(
    sites: int,
    prices: tuple[float, ...],
    seed: int,
    constraints: Constraints,
    after_skip: bool,
) -> None:
    part = analysis_of([sites], seed).stages[0]
    stage = priced(part.stage, prices, recur_after_skip=after_skip)
    charges = Charges.of(part)
    plans = [
        (stage.seconds(flat([stage], actions)), charge_of(charges, actions))
        for tail in itertools.product(ALL_ACTIONS, repeat=sites - 1)
        if allowed(stage, actions := ("keep", *tail), constraints)
    ]
    found = stage_frontier(stage, charges, constraints)
    for row, took, charge in zip(found.actions, found.seconds, found.charges, strict=True):
        actions = tuple(ALL_ACTIONS[a] for a in row)
        assert allowed(stage, actions, constraints)
        assert stage.seconds(flat([stage], actions)) == pytest.approx(took)
        assert charge_of(charges, actions) == pytest.approx(charge)
        assert sum(d.charge for d in charges.decisions(actions)) == pytest.approx(charge)
    for took, charge in plans:
        assert any(
            s <= took + 1e-9 and c <= charge + 1e-9
            for s, c in zip(found.seconds, found.charges, strict=True)
        )


@settings(max_examples=25)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(0, 2**31), guards)
def test_a_budget_of_time_equals_brute_force_and_is_monotone(
    sizes: list[int], seed: int, constraints: Constraints
) -> None:
    analysis = analysis_of(sizes, seed)
    generator = np.random.default_rng(seed)
    stages = [priced(p.stage, tuple(generator.uniform(0.01, 1, 5))) for p in analysis.stages]
    costs = costs_of(stages, of=[p.stage for p in analysis.stages])
    charges = [Charges.of(p) for p in analysis.stages]
    full = costs.predict({})
    every = [
        [
            actions
            for tail in itertools.product(ALL_ACTIONS, repeat=size - 1)
            if allowed(stage, actions := ("keep", *tail), constraints)
        ]
        for size, stage in zip(sizes, stages, strict=True)
    ]
    plans = [
        (
            costs.predict(flat(stages, tuple(itertools.chain(*choice)))) / full,
            sum(map(charge_of, charges, choice)),
        )
        for choice in itertools.product(*every)
    ]
    before = np.inf
    for time in (0.3, 0.5, 0.7, 0.9, 1.0):
        within = [charge for ratio, charge in plans if ratio <= time + 1e-9]
        if not within:
            with pytest.raises(PlanError, match="the least is"):
                within_time(analysis, costs, time, constraints)
            continue
        plan = make_plan(analysis, planner="cost", costs=costs, time=time, constraints=constraints)
        assert plan.charge == pytest.approx(min(within), abs=1e-9)
        assert plan.charge <= before + 1e-12  # type: ignore[operator]
        before = plan.charge or 0.0
        assert plan.origin.predicted_seconds == pytest.approx(costs.predict(plan.actions))
        assert plan.origin.predicted_ratio <= time + 1e-9  # type: ignore[operator]
    assert before == 0  # in all of the time all is kept


def test_the_least_ratio_that_a_refusal_names_is_reachable() -> None:
    analysis = analysis_of([4, 3])
    stages = [part.stage for part in analysis.stages]
    costs = costs_of([priced(s, PRICES) for s in stages], of=stages)
    constraints = Constraints(max_run=1)
    with pytest.raises(PlanError, match=r"max_run=1") as caught:
        within_time(analysis, costs, 0.1, constraints)
    least = float(str(caught.value).partition("the least is ")[2].partition(";")[0])
    assert within_time(analysis, costs, least, constraints)
    with pytest.raises(PlanError, match="the least is"):
        within_time(analysis, costs, least - 0.011, constraints)


def test_thinning_costs_no_more_than_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    part = analysis_of([9]).stages[0]
    stage, charges = priced(part.stage, (0.2, 0.031, 0.017, 0.11, 0.013)), Charges.of(part)
    exact = stage_frontier(stage, charges)
    monkeypatch.setattr(time_budget, "LIMIT", 20)
    thin = stage_frontier(stage, charges)
    assert len(thin.seconds) <= 21 < len(exact.seconds)
    assert thin.seconds[0] == exact.seconds[0]
    slack = 9 * stage.seconds({}) / 19  # a thinning for each site, in the whole range at most
    for took, charge in zip(exact.seconds, exact.charges, strict=True):
        within = thin.charges[thin.seconds <= took + slack]
        assert within.min() <= charge + 1e-12


def test_what_a_drop_takes_from_later_sites_is_its_weight_there() -> None:
    part = analysis_of([4]).stages[0]
    lost = Charges.of(part).lost
    w = part.weights
    assert lost[1] == pytest.approx(-np.log1p(-w[2, 1]) - np.log1p(-w[3, 1]))
    assert lost[3] == 0


def test_seconds_are_a_sum_over_sites_and_a_dropped_source_shortens_later_ones() -> None:
    stage = priced(analysis_of([5]).stages[0].stage, (1.0, 0.1, 0.01, 0.5, 0.03))

    def added(*tail: Action) -> float:
        return stage.seconds(flat([stage], ("keep", *tail)))

    assert added("keep", "keep", "keep", "keep") == pytest.approx(4 + 0.1 * (2 + 3 + 4 + 5))
    assert added("skip", "keep", "recur", "recur") == pytest.approx(
        1 + 0.1 * 3 + 0.01 + 2 * 0.5 + 0.03 * 4
    )
    assert added("drop", "recur", "keep", "recur") == pytest.approx(
        1 + 0.1 * 3 + 2 * 0.5 + 0.03 * (2 + 4)
    )
    assert added("drop", "keep", "drop", "keep") == pytest.approx(2 + 0.1 * (2 + 3))
    assert added("skip", "skip", "skip", "skip") == 0  # what no later site reads is dropped
    assert stage.model_copy(update={"carried_over": True}).seconds(
        flat([stage], ("keep", *["skip"] * 4))  # type: ignore[arg-type]
    ) == pytest.approx(0.04)
    with pytest.raises(PlanError, match="the action 'recur' in s0 were not measured"):
        stage.model_copy(update={"recur": None}).seconds({"s0.1": "recur"})


@given(
    st.lists(st.integers(4, 8), min_size=1, max_size=3),
    st.integers(0, 2**31),
    st.lists(st.floats(0.5, 2.0), min_size=1, max_size=5),
)
def test_the_fit_recovers_costs_whatever_slows_a_whole_round(
    sizes: list[int], seed: int, slowness: list[float]
) -> None:
    generator = np.random.default_rng(seed)
    stages = [
        priced(part.stage, tuple(generator.uniform(0.01, 1, 5)))
        for part in analysis_of(sizes).stages
    ]
    costs = costs_of(stages)
    plans = list(plans_to_time(stages))
    assert plans[0] == {}
    terms = np.array([[1, *itertools.chain(*(s.terms(p) for s in stages))] for p in plans])
    steps = np.array([costs.predict(plan) for plan in plans])
    fitted, error = fit_terms(terms.astype(float), np.outer(steps, slowness))
    assert error == pytest.approx(0, abs=1e-6)
    known = [costs.base]
    for stage in stages:
        known += [getattr(stage, name) for name in Terms._fields]
    for cost, priced_at in zip(fitted, known, strict=True):
        if priced_at is None:  # no plan here has a stand-in
            assert cost is None
            continue
        assert cost is not None
        for found in (cost.value, cost.lower, cost.upper):
            assert found == pytest.approx(priced_at.value * float(np.median(slowness)), abs=1e-6)


def test_more_rounds_of_the_same_spread_lift_a_cost_out_of_the_noise() -> None:
    cost = Seconds(value=1.0, lower=-2.0, upper=4.0)
    assert [cost.is_noise(rounds) for rounds in (3, 50, 124, 125)] == [True, True, True, False]
    assert Seconds(value=0.0, lower=0.0, upper=0.0).is_noise(100)


def test_what_cannot_be_told_apart_is_one_cost() -> None:
    """Of two sites only the second can be kept, of two sources always: keep takes it all."""
    stages = [priced(analysis_of([2]).stages[0].stage, (1.0, 0.1, 0.2, 0.3, 0.05))]
    plans = list(plans_to_time(stages))
    terms = np.array([[1.0, *stages[0].terms(plan)] for plan in plans])
    steps = np.array([[costs_of(stages).predict(plan)] for plan in plans])
    base, keep, skip, recur, source, start, affine = fit_terms(terms, steps)[0]
    assert affine is None  # nothing here has a stand-in
    assert (skip, source, start) == (None, None, None)
    assert [c.value for c in (base, keep, recur) if c] == pytest.approx([1.0, 1.2, 0.4])


def test_costs_survive_their_file_and_broken_ones_are_refused(tmp_path: Path) -> None:
    analysis = analysis_of([3, 2])
    stages = [part.stage for part in analysis.stages]
    costs = costs_of([priced(s, PRICES) for s in stages], of=stages)
    path = costs.save(tmp_path / "costs.json")
    assert CostModel.load(path) == costs
    text = path.read_text()
    for broken, message in (
        ("{", "no valid costs"),
        (text.replace('"schema_version": 1', '"schema_version": 7'), "expected 1; .* upgrade"),
        (text.replace('"base"', '"basis"'), "base: Field required"),
        (text.replace('"value": 0.2', '"value": -0.2'), "greater than or equal to 0"),
    ):
        path.write_text(broken)
        with pytest.raises(PlanError, match=message):
            CostModel.load(path)
    with pytest.raises(PlanError, match=r"expected a file that `ela-probe costs` wrote"):
        CostModel.load(tmp_path / "none.json")
    with pytest.raises(
        PlanError, match=r"5 sites; the analysis has 3.*s0\.2 .* not in the analysis"
    ):
        within_time(analysis_of([2, 1]), costs, 0.9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"costs": True}, "needs costs.*and a time"),
        ({"time": 0.8}, "needs costs.*and a time"),
        (
            {"planner": "budget", "costs": True, "time": 0.8},
            "beside it only the planner 'damage' takes them",
        ),
        ({"costs": True, "time": 0.8, "action": "recur"}, "chooses the actions"),
        ({"costs": True, "time": 1.2}, "at most 1"),
        ({"costs": True, "time": 0.0}, "more than 0"),
    ],
)
def test_what_cannot_be_planned_is_said(options: dict[str, object], message: str) -> None:
    analysis = analysis_of([3, 3])
    stages = [part.stage for part in analysis.stages]
    if options.pop("costs", False):
        options["costs"] = costs_of([priced(s, PRICES) for s in stages], of=stages)
    with pytest.raises(PlanError, match=message):
        make_plan(analysis, **{"planner": "cost", **options})  # type: ignore[arg-type]


def test_plans_without_the_new_fields_still_load() -> None:
    document = make_plan(analysis_of([4]), skip=0.25).model_dump(mode="json")
    for name in ("time_budget", "predicted_ratio", "predicted_seconds", "timed_on"):
        assert document["origin"].pop(name) is None
    assert SkipPlan.model_validate(document).skipped


SMALL = {"dim": 16, "heads": 4, "kv_heads": 2, "vocab_size": 11}


def tokens(*shape: int) -> Tensor:
    return torch.randint(0, 11, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("block_size", [1, 2, 3])
def test_every_plan_of_the_planner_can_be_carried_out(block_size: int) -> None:
    """In AttnRes a site recurs only after one that is formed; in blocks few can, and none drop."""
    model = create_model("attnres_block2", block_size=block_size, **SMALL).eval()
    with AttentionProbe(model) as probe, torch.no_grad():
        model(tokens(4, 6))
    analysis = probe.analysis()
    (stage,) = discover(model).stages
    possible = possible_actions(model, stage)
    assert not possible.recur_after_skip
    prices = {"keep": seconds(0.2), "source": seconds(0.03), "skip": seconds(0.01)}
    costs = costs_of([possible.model_copy(update={**prices, "recur": seconds(0.05)})], of=[stage])
    seen: set[str] = set()
    for time in np.linspace(0.5, 1, 12):
        plan = make_plan(analysis, planner="cost", costs=costs, time=float(time))
        seen |= set(plan.actions.values())
        pruned = prune(model, plan)
        with torch.no_grad():
            assert pruned(tokens(1, 3)).isfinite().all()
    assert "recur" in seen


def test_the_actions_an_adapter_refuses_are_not_offered() -> None:
    (stage,) = discover(model := create_model("attnres_block2", block_size=2, **SMALL)).stages
    blocks = [site.actions for site in possible_actions(model, stage).sites]
    assert blocks[0] == ("keep",)
    assert all("drop" not in actions for actions in blocks[:-1])
    assert "recur" in blocks[1]
    assert "recur" not in blocks[2]


@pytest.mark.parametrize(("name", "sites"), [("attnres1", [3]), ("mrla_b_resnet14", [2, 2, 2])])
def test_measured_costs_predict_any_plan_and_leave_the_model_alone(
    name: str, sites: list[int], images: Tensor
) -> None:
    text = name.startswith("attnres")
    model: nn.Module = create_model(name, **SMALL) if text else settled(name)
    model.train()
    batch = (tokens(2, 5), tokens(2, 5)) if text else (images[:2], torch.tensor([0, 1]))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    costs = measure_costs(model, batch, rounds=2, warmup=0, name=name, progress=False)

    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert costs.batch_shape == tuple(batch[0].shape)
    assert [len(stage.sites) for stage in costs.stages] == sites
    assert all(stage.keep is not None for stage in costs.stages)
    if text:
        assert all(c is not None for c in (costs.stages[0].recur, costs.stages[0].source))
    costs.check_sites(discover(model).stages)
    actions = {s.name: "drop" for stage in costs.stages for s in stage.sites[1:]}
    assert costs.predict(actions) == costs.base.value  # type: ignore[arg-type]
    assert costs.predict({}) >= costs.base.value


def test_what_cannot_be_pruned_cannot_be_measured(images: Tensor) -> None:
    batch = (images[:2], torch.tensor([0, 1]))
    with pytest.raises(ModelError, match="no layer attention"):
        measure_costs(create_model("resnet8"), batch)
    with pytest.raises(PlanError, match="no adapter knows how to prune a Sequential"):
        measure_costs(nn.Sequential(nn.Flatten(), nn.Linear(768, 10)), batch)


def test_one_retrieval_a_stage_leaves_nothing_to_choose(images: Tensor) -> None:
    batch = (images[:2], torch.tensor([0, 1]))
    costs = measure_costs(settled("mrla_b_resnet8"), batch, rounds=1, warmup=0, progress=False)
    assert len(list(plans_to_time(costs.stages))) == 1
    assert costs.predict({}) == costs.base.value

"""Plans by damage: optimal, within their guards, with stand-ins that survive every step."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ela_probe import Analysis, ModelSpec, SkipPlan, analyze, load_checkpoint, make_plan, prune
from ela_probe.analysis.damage import MEASURED, StageDamage
from ela_probe.analysis.findings import findings, recommended_share
from ela_probe.checkpoint import save_checkpoint
from ela_probe.errors import PlanError
from ela_probe.models.stand_in import StandIn
from ela_probe.pruning.candidates import random_plan_for_time
from ela_probe.pruning.cost_model import StageCosts
from ela_probe.pruning.damage_budget import Choice, within_damage
from ela_probe.pruning.plan import Constraints, decode_stand_in, encode_stand_in
from ela_probe.pruning.planners import SkipAction
from ela_probe.sites import Stage
from tests.support.costs import costs_of, priced, seconds
from tests.support.networks import settled
from tests.support.planning import allowed, analysis_of, guards


def with_damage(
    analysis: Analysis, prices: dict[str, list[list[float]]], *, samples: int = 100
) -> Analysis:
    """An analysis whose damages by action, stage and site are these; the standard error is 0.

    Half of a damage is first-order. NaN: not measured.
    """
    stages = []
    for s, part in enumerate(analysis.stages):
        count = len(part.stage.sites)
        mean = np.full((count, len(MEASURED)), np.nan)
        for action, by_stage in prices.items():
            mean[:, MEASURED.index(action)] = by_stage[s]
        sums = np.stack([mean / 2, mean**2 / 4, mean, mean**2], axis=-1) * samples
        stand_ins = tuple(
            np.full((2, 3), t, dtype=np.float32) if np.isfinite(mean[t, 1]) else None
            for t in range(count)
        )
        damage = StageDamage(samples, sums, np.ones(count), stand_ins)
        stages.append(dataclasses.replace(part, damage=damage))
    return dataclasses.replace(analysis, stages=tuple(stages))


@given(
    st.lists(
        st.lists(
            st.floats(-1, 1) | st.just(float("inf")), min_size=1, max_size=4
        ), min_size=1, max_size=2,
    ),
    guards,
)  # fmt: skip
def test_the_plan_is_the_best_of_all_subsets(
    prices: list[list[float]], constraints: Constraints
) -> None:
    choices = [[Choice("affine", price) for price in stage] for stage in prices]
    sizes = [len(stage) for stage in prices]
    best: dict[int, float] = {}
    for flags in itertools.product([False, True], repeat=sum(sizes)):
        chosen, start = [], 0
        for size in sizes:
            own = flags[start : start + size]
            chosen.append(tuple(t for t in range(size) if own[t]))
            start += size
        total = sum(prices[s][t] for s, own in enumerate(chosen) for t in own)
        if all(allowed(n, own, constraints) for n, own in zip(sizes, chosen, strict=True)):
            best[sum(flags)] = min(best.get(sum(flags), np.inf), total)
    feasible = {k: total for k, total in best.items() if np.isfinite(total)}
    for budget in range(sum(sizes) + 1):
        if budget not in feasible:
            with pytest.raises(PlanError, match=r"cannot skip"):
                within_damage(choices, budget=budget, constraints=constraints)
            continue
        found = within_damage(choices, budget=budget, constraints=constraints)
        assert sum(map(len, found)) == budget
        total = sum(prices[s][t] for s, own in enumerate(found) for t in own)
        assert total == pytest.approx(feasible[budget], abs=1e-12)
    limit = 0.25
    found = within_damage(choices, max_loss=limit, constraints=constraints)
    expected = max((k for k, total in feasible.items() if total <= limit), default=0)
    assert sum(map(len, found)) == expected


def test_damage_is_the_default_and_takes_the_cheaper_action() -> None:
    nan = float("nan")
    analysis = with_damage(
        analysis_of([4, 3]),
        {
            "skip": [[0.0, 0.5, 0.01, 0.9], [0.0, 0.3, 0.2]],
            "affine": [[0.04, 0.02, 0.03, nan], [0.9, 0.3, nan]],
        },
    )
    plan = make_plan(analysis, skip=3 / 7)
    assert plan.origin.planner == "damage"
    assert plan.changes == {"s0.0": "affine", "s0.1": "affine", "s0.2": "skip"}
    assert plan.origin.predicted_loss is not None
    assert plan.origin.predicted_loss.mean == pytest.approx(0.07)
    assert plan.charge == pytest.approx(0.07)
    assert make_plan(analysis, skip=1 / 7, action="affine").changes == {"s0.1": "affine"}
    assert make_plan(analysis, max_loss=0.035).changes == {"s0.1": "affine", "s0.2": "skip"}
    assert make_plan(analysis, max_loss=0.005).changes == {}
    np.testing.assert_array_equal(plan.stand_ins["s0.1"], np.ones((2, 3)))
    assert SkipPlan.parse(plan.model_dump_json()) == plan
    other = make_plan(analysis_of([4, 3]), skip=3 / 7)
    assert other.origin.planner == "budget"
    assert other.origin.predicted_loss is None


def test_plans_of_other_planners_predict_their_loss_too() -> None:
    prices = [[0.0, 0.1, 0.2, 0.4]]
    analysis = with_damage(analysis_of([4]), {"skip": prices, "affine": prices})
    actions: list[SkipAction] = ["skip", "affine"]
    for action in actions:
        plan = make_plan(analysis, skip=0.5, planner="deepest", action=action)
        assert plan.origin.predicted_loss is not None
        assert plan.origin.predicted_loss.mean == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"planner": "damage"}, "needs an analysis with damage"),
        ({"action": "affine"}, "needs an analysis with stand-ins"),
        ({"max_loss": 0.1}, "only the planner 'damage' predicts a loss"),
    ],
)
def test_what_needs_damage_says_so(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        make_plan(analysis_of([4]), **arguments)  # type: ignore[arg-type]


def test_actions_that_the_planner_cannot_take_are_refused() -> None:
    analysis = with_damage(analysis_of([4]), {"skip": [[0.0, 0.1, 0.2, 0.4]]})
    with pytest.raises(PlanError, match="expected the action 'skip', 'affine' or none"):
        make_plan(analysis, action="recur", planner="damage")
    with pytest.raises(PlanError, match="needs an analysis with stand-ins"):
        make_plan(analysis, action="affine")


@pytest.mark.parametrize("text", ["", "2", "2:%%%", "3:AAAA", "1:AADAfw==", "0:", "x:AAAA"])
def test_a_broken_stand_in_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="got (the|a) stand-in"):
        decode_stand_in(text)


@given(st.integers(1, 3), st.integers(1, 5), st.integers(0, 99))
def test_stand_ins_survive_text(rows: int, channels: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(rows, channels)).astype(np.float32)
    np.testing.assert_array_equal(decode_stand_in(encode_stand_in(values)), values)


def test_a_stand_in_belongs_to_affine_and_to_nothing_else() -> None:
    plan = make_plan(analysis_of([3]), skip=0.3).model_dump()
    site = plan["stages"][0]["sites"][1]
    for action, stand_in in (
        ("affine", None),
        ("keep", encode_stand_in(np.ones((1, 2), dtype=np.float32))),
    ):
        site |= {"action": action, "stand_in": stand_in}
        with pytest.raises(ValueError, match="expected one with 'affine' and with no other"):
            SkipPlan.model_validate(plan)


def test_findings_speak_of_damage_first() -> None:
    prices = [[0.0, 0.004, 0.5, 0.008], [0.0, 0.3, 0.2, 0.1]]
    analysis = with_damage(analysis_of([4, 4]), {"skip": prices})
    first, second, *_ = findings(analysis)
    assert first.kind == "damage"
    assert first.text.startswith("Skipping 2 of 8 retrievals costs about 0.012 ± ")
    assert first.sites == ("s0.1", "s0.3")
    assert recommended_share(analysis) == 0.2
    assert make_plan(analysis, skip=0.2).changes == {"s0.1": "skip", "s0.3": "drop"}
    assert "share" not in second.text
    costly = with_damage(analysis_of([4, 4]), {"skip": np.add(prices, 0.1).tolist()})
    assert "Skipping any of the 8 retrievals costs more than 0.02 nats" in findings(costly)[0].text
    assert recommended_share(costly) is None


@given(st.lists(st.integers(1, 4), min_size=1, max_size=2), st.integers(0, 2**31), guards)
def test_a_plan_for_a_time_has_the_least_damage_of_all_that_fit(
    sizes: list[int], seed: int, constraints: Constraints
) -> None:
    generator = np.random.default_rng(seed)
    prices: dict[str, list[list[float]]] = {
        action: [list(generator.choice([np.nan, 0.2, -0.1, 0.5, 1.0], size)) for size in sizes]
        for action in MEASURED
    }
    analysis = with_damage(analysis_of(sizes, seed), prices)
    stages = [part.stage for part in analysis.stages]
    costs = costs_of(
        [priced_with_stand_ins(stage, generator.uniform(0.01, 1, 6)) for stage in stages],
        of=stages,
    )
    names = [site.name for stage in stages for site in stage.sites]
    possible = [
        ["keep", *(["skip", "affine", "recur"] if t else [])] for size in sizes for t in range(size)
    ]
    damages = {
        (name, action): price
        for action, by_stage in prices.items()
        for name, price in zip(names, itertools.chain(*by_stage), strict=True)
    }
    plans = []
    for chosen in itertools.product(*possible):
        actions = dict(zip(names, chosen, strict=True))
        damage = sum(damages[n, a] for n, a in actions.items() if a != "keep")
        if np.isfinite(damage) and all(obeys(constraints, actions, stage) for stage in stages):
            plans.append((costs.predict(actions) / costs.predict({}), damage))  # type: ignore[arg-type]
    for time in (0.5, 0.8, 1.0):
        fitting = [damage for ratio, damage in plans if ratio <= time + 1e-9]
        if not fitting:
            with pytest.raises(PlanError, match="the least is"):
                make_plan(analysis, costs=costs, time=time, constraints=constraints)
            continue
        plan = make_plan(analysis, costs=costs, time=time, constraints=constraints)
        assert plan.origin.planner == "damage"
        assert plan.charge == pytest.approx(min(fitting), abs=1e-9)
        assert plan.origin.predicted_ratio is not None
        assert plan.origin.predicted_ratio <= time + 1e-9


def priced_with_stand_ins(stage: Stage, prices: np.ndarray) -> StageCosts:
    """Costs of a stage; the last price is that of a stand-in."""
    costs = priced(stage, tuple(prices[:5]))
    sites = tuple(
        site.model_copy(update={"actions": (*site.actions, "affine")}) if t else site
        for t, site in enumerate(costs.sites)
    )
    return costs.model_copy(update={"affine": seconds(float(prices[5])), "sites": sites})


def obeys(constraints: Constraints, actions: dict[str, str], stage: Stage) -> bool:
    own = [actions[site.name] for site in stage.sites]
    formed = [action in ("keep", "recur") for action in own]
    runs = [len(list(group)) for made, group in itertools.groupby(formed) if not made]
    return max(runs, default=0) <= (constraints.max_run or len(own)) and (
        own.count("keep") >= min(constraints.min_keep, len(own))
    )


@pytest.mark.parametrize("name", ["mrla_b", "mrla_l", "dia"])
def test_stand_ins_are_saved_loaded_and_trained_on(name: str, tmp_path: Path) -> None:
    model = settled(f"{name}_resnet14", num_classes=3)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 3, 16, 16, generator=generator)
    labels = torch.randint(0, 3, (8,), generator=generator)
    analysis = analyze(model, [(images, labels)], progress=False)
    plan = make_plan(analysis, skip=0.5, action="affine")
    assert set(plan.changes.values()) == {"affine"}
    pruned = prune(model, plan)
    stand_ins = [m for m in pruned.modules() if isinstance(m, StandIn)]
    assert len(stand_ins) == 3
    assert all(p.requires_grad for m in stand_ins for p in m.parameters())
    spec = ModelSpec(name=f"{name}_resnet14", args={"num_classes": 3})
    for _ in range(2):  # as it was pruned, and after a step of training
        path = save_checkpoint(tmp_path / "pruned.pt", pruned, spec=spec, plans=[plan])
        loaded = load_checkpoint(path)
        with torch.no_grad():
            assert torch.equal(loaded(images), pruned.eval()(images))
        before = stand_ins[0].scale.clone()
        optimizer = torch.optim.SGD(pruned.parameters(), lr=0.1)
        nn.functional.cross_entropy(pruned(images), labels).backward()
        optimizer.step()
        assert not torch.equal(stand_ins[0].scale, before)


@given(st.lists(st.integers(2, 4), min_size=1, max_size=2), st.integers(0, 2**31))
def test_random_plans_for_a_time_remove_no_more_than_it_takes(sizes: list[int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    prices: dict[str, list[list[float]]] = {
        action: [list(generator.uniform(0, 1, size)) for size in sizes] for action in MEASURED
    }
    analysis = with_damage(analysis_of(sizes, seed), prices)
    stages = [part.stage for part in analysis.stages]
    costs = costs_of(
        [priced_with_stand_ins(s, generator.uniform(0.01, 1, 6)) for s in stages], of=stages
    )
    removals: tuple[SkipAction, ...] = ("skip", "affine")
    for action in removals:
        names = [site.name for stage in stages for site in stage.sites[1:]]
        subsets = itertools.chain(*(itertools.combinations(names, n) for n in range(1, 7)))
        ratios = [
            costs.predict(dict.fromkeys(subset, action)) / costs.predict({}) for subset in subsets
        ]
        least, whole = min(ratios), ratios[-1]
        if whole >= 1:  # in these costs, removing all takes longer than keeping all
            continue
        plan = random_plan_for_time(analysis, costs, (1 + whole) / 2, action, seed=seed)
        assert set(plan.changes.values()) <= (
            {"affine"} if action == "affine" else {"skip", "drop"}
        )
        assert costs.predict(plan.actions) / costs.predict({}) <= (1 + whole) / 2
        assert plan.origin.planner == "random"
        again = random_plan_for_time(analysis, costs, (1 + whole) / 2, action, seed=seed)
        assert again.actions == plan.actions
        with pytest.raises(PlanError, match="no random plan"):
            random_plan_for_time(analysis, costs, least * 0.99, action, seed=seed)

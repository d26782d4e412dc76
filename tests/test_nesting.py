"""What ELA decides on: averages over epochs, nested plans, hysteresis, draws, settings."""

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ela_probe.analysis.beta_fit import fit_beta
from ela_probe.analysis.result import Analysis, StageAnalysis
from ela_probe.errors import OptionError, PlanError
from ela_probe.pruning.plan import Constraints
from ela_probe.pruning.site_budget import stage_optima
from ela_probe.training.ela.config import ELAConfig
from ela_probe.training.ela.moving_averages import StageAverage
from ela_probe.training.ela.nested_plans import (
    Names,
    draw_positions,
    due_part,
    plan_skipping,
    proposal,
    skip_count,
)
from tests.support.planning import allowed, cost, guards, random_charge
from tests.support.synthetic_analyses import make_analysis

SITES = (6, 5, 4)


def names_of(analysis: Analysis) -> list[list[str]]:
    return [[site.name for site in part.stage.sites] for part in analysis.stages]


@pytest.mark.parametrize("sites", [2, 5, 7])
@given(seed=st.integers(0, 2**31), constraints=guards, data=st.data())
def test_sites_that_must_and_may_be_skipped_equal_brute_force(
    sites: int, seed: int, constraints: Constraints, data: st.DataObject
) -> None:
    charge = random_charge(sites, seed)
    may = data.draw(st.sets(st.integers(1, sites - 1)))
    must = data.draw(st.sets(st.sampled_from(sorted(may)))) if may else set()
    optima = stage_optima(charge, constraints, must=must, may=may)
    for budget in range(sites):
        candidates = [
            skipped
            for skipped in itertools.combinations(range(1, sites), budget)
            if allowed(sites, skipped, constraints) and must <= set(skipped) <= may
        ]
        assert (budget in optima) == bool(candidates)
        if candidates:
            assert optima[budget][1] in candidates
            best = min(cost(charge, skipped) for skipped in candidates)
            assert optima[budget][0] == pytest.approx(best, abs=1e-12)


@given(st.integers(0, 2**31), guards, st.sampled_from(["score", "budget"]), st.data())
def test_plans_are_nested_reach_the_share_and_keep_the_guards(
    seed: int, constraints: Constraints, planner: str, data: st.DataObject
) -> None:
    """Every epoch has other statistics, and still nothing comes back."""
    stages = [part.stage for part in make_analysis(SITES, samples=3).stages]
    try:
        final = skip_count(0.5, stages, constraints)
    except PlanError:
        return
    removed: Names = frozenset()
    before: Names = frozenset()
    due = [*sorted(data.draw(st.lists(st.integers(0, final), max_size=3))), final]
    for epoch, count in enumerate(due):
        analysis = make_analysis(SITES, samples=8, seed=seed + epoch)
        options: dict[str, Any] = {
            "planner": planner,
            "action": "skip",
            "removed": removed,
            "constraints": constraints,
        }
        before = proposal(analysis, final, before=before, hysteresis=0.2, **options)
        skipped = due_part(before, analysis, count, **options)
        assert removed <= skipped <= before
        assert (len(skipped), len(before)) == (count, final)
        for stage in names_of(analysis):
            assert stage[0] not in skipped
            positions = tuple(t for t, name in enumerate(stage) if name in skipped)
            assert allowed(len(stage), positions, constraints)
        removed = skipped


def with_kl(analysis: Analysis, kl: np.ndarray) -> Analysis:
    (part,) = analysis.stages
    divergences = part.divergences | {"kl": kl}
    return dataclasses.replace(
        analysis, stages=(dataclasses.replace(part, divergences=divergences),)
    )


@pytest.mark.parametrize(("hysteresis", "stays"), [(0.0, False), (0.1, False), (0.3, True)])
def test_a_rival_must_be_better_by_the_hysteresis(hysteresis: float, stays: bool) -> None:
    analysis = make_analysis((3,), samples=4)
    first, second = names_of(analysis)[0][1:]
    options: dict[str, Any] = {
        "planner": "budget",
        "action": "skip",
        "removed": frozenset(),
        "constraints": Constraints(),
    }

    def proposed(of_second: float, before: Names) -> Names:
        kl = np.zeros((3, 3))
        kl[0, 1], kl[:, 2] = 1.0, of_second
        return proposal(with_kl(analysis, kl), 1, before=before, hysteresis=hysteresis, **options)

    old = proposed(1.2, frozenset())
    assert old == {first}
    assert proposed(0.8, old) == ({first} if stays else {second})


def test_a_plan_says_what_is_known_of_a_site_that_is_gone() -> None:
    analysis = make_analysis(SITES, samples=20)
    options: dict[str, Any] = {"planner": "score", "action": "skip", "constraints": Constraints()}
    removed = frozenset({names_of(analysis)[0][2]})
    first = plan_skipping(removed, analysis, epoch=1, last=None, **options)
    later = make_analysis(SITES, samples=20, seed=1)
    both = removed | {names_of(analysis)[1][1]}
    second = plan_skipping(both, later, epoch=2, last=first, **options)
    site, same = (plan.stages[0].sites[2] for plan in (first, second))
    assert (site.score, site.quantile) == (same.score, same.quantile) != (None, None)
    assert second.stages[1].sites[1].score != first.stages[1].sites[1].score
    assert (first.origin.epoch, second.origin.epoch) == (1, 2)
    assert set(second.skipped) == both


def test_a_site_that_none_follows_any_more_is_dropped() -> None:
    analysis = make_analysis((4,), samples=5)
    names = names_of(analysis)[0]
    options: dict[str, Any] = {
        "planner": "score",
        "action": "skip",
        "constraints": Constraints(),
        "last": None,
    }
    first = plan_skipping(frozenset({names[2]}), analysis, epoch=1, **options)
    second = plan_skipping(frozenset(names[2:]), analysis, epoch=2, **options)
    assert first.actions[names[2]] == "skip"
    assert second.actions[names[2]] == second.actions[names[3]] == "drop"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), guards, st.integers(0, 2**31))
def test_draws_keep_the_guards_and_follow_from_their_seed(
    scores: list[float], constraints: Constraints, seed: int
) -> None:
    sets = [
        tuple(draw_positions(np.array(scores), constraints, np.random.default_rng(seed)))
        for _ in range(2)
    ]
    assert sets[0] == sets[1]
    assert 0 not in sets[0]
    assert allowed(len(scores), sets[0], constraints)


def test_a_site_is_drawn_with_the_probability_of_its_score() -> None:
    scores = np.array([1.0, 0.0, 0.2, 0.7, 1.0, np.nan])
    random = np.random.default_rng(0)
    draws = [draw_positions(scores, Constraints(), random) for _ in range(4000)]
    shares = [np.mean([t in draw for draw in draws]) for t in range(6)]
    assert shares[0] == shares[1] == shares[5] == 0
    assert shares[4] == 1
    assert shares[2:4] == pytest.approx([0.2, 0.7], abs=0.03)


@pytest.mark.parametrize(
    ("share", "constraints", "message"),
    [
        (0.01, Constraints(), r"of 15 retrievals is less than one of them; ask for 0\.04 or more"),
        (0.9, Constraints(), r"cannot skip 14 of 15"),
        (0.5, Constraints(min_keep=4), r"min_keep=4 allow 3 at most"),
    ],
)
def test_a_share_that_cannot_be_is_refused(
    share: float, constraints: Constraints, message: str
) -> None:
    stages = [part.stage for part in make_analysis(SITES, samples=2).stages]
    with pytest.raises(PlanError, match=message):
        skip_count(share, stages, constraints)


# Averages


def parts(count: int = 3, sites: int = 4, samples: int = 6) -> list[StageAnalysis]:
    return [make_analysis((sites,), samples=samples, seed=s).stages[0] for s in range(count)]


def test_averages_over_epochs_equal_a_computation_by_hand() -> None:
    epochs = parts()
    average = StageAverage(epochs[0].stage, decay=0.6)
    for part in epochs:
        average.update(part)
    found = average.analysis()
    shares = [0.36, 0.24, 0.4]  # 0.6², 0.4 · 0.6, 0.4

    def mixed(values: list[Any]) -> Any:
        return sum(share * value for share, value in zip(shares, values, strict=True))

    for name in ("kl", "shape", "mass", "js", "kl_of_means"):
        by_hand = mixed([part.divergences[name] for part in epochs])
        np.testing.assert_allclose(found.divergences[name], by_hand, rtol=1e-12)
    variances = [
        (share * p.divergences["kl_se"]) ** 2 for share, p in zip(shares, epochs, strict=True)
    ]
    np.testing.assert_allclose(found.divergences["kl_se"] ** 2, sum(variances), rtol=1e-12)
    np.testing.assert_allclose(found.weights, mixed([part.weights for part in epochs]))
    for t in range(1, 4):
        beta = found.beta[t]
        assert beta.n == epochs[0].beta[t].n
        assert beta.log_u == pytest.approx(mixed([p.beta[t].log_u for p in epochs]))
        np.testing.assert_allclose(beta.histogram, mixed([p.beta[t].histogram for p in epochs]))
    assert found.samples == 6
    assert found.beta[0].n == 0


def test_without_decay_only_the_last_epoch_counts() -> None:
    epochs = parts()
    average = StageAverage(epochs[0].stage, decay=0.0)
    for part in epochs:
        average.update(part)
    found = average.analysis()
    np.testing.assert_array_equal(found.divergences["kl"], epochs[-1].divergences["kl"])
    np.testing.assert_allclose(found.quantiles, epochs[-1].quantiles, rtol=1e-9)
    exact = fit_beta(epochs[-1].pooled)
    assert found.fit is not None
    assert exact is not None
    assert found.fit.alpha == pytest.approx(exact.alpha, rel=1e-9)


def without(part: StageAnalysis, removed: int, *, shorter: bool) -> StageAnalysis:
    """The analysis of a stage without a site; `shorter`: its source is removed as well."""
    left = [t for t in range(len(part.stage.sites)) if t != removed]
    sites = tuple(
        dataclasses.replace(site, sources=site.sources - (shorter and t > removed))
        for t, site in enumerate(part.stage.sites)
        if t != removed
    )
    return dataclasses.replace(
        part,
        stage=dataclasses.replace(part.stage, sites=sites),
        weights=part.weights[left][:, : sites[-1].sources],
        divergences={name: value[np.ix_(left, left)] for name, value in part.divergences.items()},
        beta=tuple(part.beta[t] for t in left),
        entropy=part.entropy[left],
        entropy_se=part.entropy_se[left],
    )


@pytest.mark.parametrize("shorter", [False, True])
def test_averages_start_over_only_where_they_would_mix_unlike_things(shorter: bool) -> None:
    first, second = parts(2, sites=5)
    average = StageAverage(first.stage, decay=0.5)
    average.update(first)
    average.update(without(second, 2, shorter=shorter))
    found = average.analysis()
    old, new, kl = (p.divergences["kl"] for p in (first, second, found))
    both = (old + new) / 2
    np.testing.assert_array_equal(kl[2], old[2])  # removed: as it was
    np.testing.assert_array_equal(kl[:2, 2], old[:2, 2])
    assert kl[0, 1] == both[0, 1]
    for i, j in ((0, 3), (1, 4), (3, 4)):
        assert kl[i, j] == (new if shorter else both)[i, j]
    u = [[p.beta[t].u / p.beta[t].n for t in range(1, 5) if p.beta[t].n] for p in (first, second)]
    assert found.beta[2].n == 0
    assert found.beta[1].u / found.beta[1].n == pytest.approx((u[0][0] + u[1][0]) / 2)
    assert found.beta[3].u / found.beta[3].n == pytest.approx(u[1][2])  # it follows another site
    last = u[1][3] if shorter else (u[0][3] + u[1][3]) / 2
    assert found.beta[4].u / found.beta[4].n == pytest.approx(last)


def test_averages_go_on_from_their_state_exactly() -> None:
    epochs = parts()
    whole, first = (StageAverage(epochs[0].stage, decay=0.7) for _ in range(2))
    for part in epochs:
        whole.update(part)
    for part in epochs[:2]:
        first.update(part)
    resumed = StageAverage(epochs[0].stage, decay=0.7)
    resumed.load_state_dict(first.state_dict())
    resumed.update(epochs[2])
    for one, other in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


# Settings


def test_settings_are_read_from_one_line() -> None:
    config = ELAConfig.parse("skip=0.5, warmup=10,ramp=20,planner=budget,stochastic=true")
    expected = {"skip": 0.5, "warmup": 10, "ramp": 20, "planner": "budget", "stochastic": True}
    assert config == ELAConfig(**expected)
    assert ELAConfig.of(skip=0.5).decay == 0.7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "skip",
            r"got 'skip', expected name=value.*; the names are loss, time, costs, regrow, skip",
        ),
        ("", r"got '', expected name=value"),
        ("skip=0.5,,ramp=2", r"got '', expected name=value"),
        ("skip=", r"got 'skip='"),
        ("skip=0.5,skip=0.4", r"got skip twice"),
        ("share=0.5", r"there is no 'share'; expected loss, time, costs, regrow, skip, warmup"),
        ("skip=1.5", r"skip '1.5': Input should be less than 1"),
        ("warmup=0", r"warmup '0'"),
        ("action=keep", r"action 'keep': Input should be 'skip', 'drop', 'recur' or 'affine'"),
        ("stochastic=maybe", r"stochastic 'maybe'"),
        ("warmup=5,freeze=3", r"freeze 3 comes before the warm-up \(5\) ends"),
    ],
)
def test_settings_that_are_wrong_are_told_in_one_line(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        ELAConfig.parse(text)
    assert "\n" not in str(caught.value)


def test_the_share_grows_linearly_after_the_warm_up_and_stays_after_the_freeze() -> None:
    schedule = ELAConfig(warmup=3, ramp=4).schedule(20)
    parts = [schedule.fraction(epoch) for epoch in range(9)]
    assert parts == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert schedule.last == 6
    frozen = ELAConfig(warmup=3, ramp=4, freeze=4).schedule(20)
    assert [frozen.fraction(epoch) for epoch in (3, 4, 5, 9)] == [0.25, 0.5, 0.5, 0.5]
    assert ELAConfig(warmup=3, ramp=4, freeze=15).schedule(20).last == 6
    assert ELAConfig(warmup=3, ramp=4, freeze=15, stochastic=True).schedule(20).last == 15
    by_default = ELAConfig().schedule(160)
    assert (by_default.warmup, by_default.ramp) == (16, 32)
    assert ELAConfig().schedule(2).last == 1


@pytest.mark.parametrize(
    ("settings", "epochs", "message"),
    [
        ({"warmup": 5, "ramp": 6}, 10, "final after epoch 10 of 10"),
        ({}, 1, "final after epoch 1 of 1"),
        ({"freeze": 3}, 100, "freeze 3 comes before the warm-up of 10 epochs"),
        (
            {"warmup": 2, "ramp": 1, "stochastic": True},
            9,
            "would start after epoch 2, when the plan is",
        ),
        ({"warmup": 2}, None, "no max_epochs; set warmup and ramp"),
    ],
)
def test_a_schedule_that_does_not_fit_the_run_is_refused(
    settings: dict[str, int], epochs: int | None, message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        ELAConfig(**settings).schedule(epochs)


@pytest.mark.parametrize(
    ("batches", "step", "probed"),
    [(1, 1, 1), (2, 1, 2), (3, 1, 3), (16, 8, 2), (390, 100, 4), (float("inf"), 100, None)],
)
def test_one_batch_in_a_hundred_is_probed_and_two_at_least(
    batches: float, step: int, probed: int | None
) -> None:
    assert ELAConfig().probe_every(batches) == step
    if probed is not None:
        assert sum(b % step == step // 2 for b in range(int(batches))) == probed
    assert ELAConfig(every=7).probe_every(batches) == min(7, batches)

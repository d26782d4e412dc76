"""Planned against random plans: what is compared, nothing trained twice, and the figures."""

import json
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from benchmarks.cases import plans
from benchmarks.support import tuning
from benchmarks.support.candidates import BASELINES, PLANNED, Candidate
from ela_probe.checkpoint import read_checkpoint
from ela_probe.data.opening import open_data
from ela_probe.errors import OptionError
from ela_probe.models.registry import ModelSpec
from ela_probe.pipeline.train import finetune, train
from ela_probe.training.config import TrainConfig

OPTIONS: dict[str, Any] = {
    "skip": [0.17, 0.33],
    "random": 3,
    "analysis_limit": 64,
    "test_limit": 60,
    "epochs": 1,
    "batch_size": 32,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    found = []
    for seed in (0, 1):
        data = open_data("digits", limit=100, val_fraction=0.1, seed=seed)
        config = TrainConfig(epochs=1, batch_size=32, lr=0.05, seed=seed)
        run = folder / f"s{seed}"
        spec = ModelSpec(name="mrla_b_resnet14")
        found.append(train(spec, data, config, output=run, device="cpu", progress=False).last)
    return found


@pytest.fixture(scope="module")
def done(checkpoints, tmp_path_factory):
    """The folder of finished tables."""
    output = tmp_path_factory.mktemp("plans")
    plans.run(checkpoints, output, **OPTIONS)
    return output


def tables_in(output):
    return json.loads((output / "table.json").read_text())["tables"]


@pytest.mark.slow
def test_every_planner_has_a_plan_of_the_same_size_for_every_checkpoint(done):
    each = tables_in(done)["Plans"]
    names = [*PLANNED, *BASELINES, *["random"] * 3]
    assert [row["planner"] for row in each] == ["unpruned", *names, *names] * 2
    for row in each:
        sites = [] if row["sites"] == "–" else row["sites"].split()
        assert len(sites) == {0.0: 0, 0.17: 1, 0.33: 2}[row["share"]]
        assert not any(".0.retrieval" in site for site in sites)  # the first of a stage stays


@pytest.mark.slow
def test_the_budget_planner_has_the_least_divergence_and_the_loss_planner_the_smallest_rise(done):
    each = tables_in(done)["Plans"]
    for checkpoint in {row["checkpoint"] for row in each}:
        of_share = [r for r in each if (r["checkpoint"], r["share"]) == (checkpoint, 0.17)]
        least = next(r["divergence"] for r in of_share if r["planner"] == "budget")
        assert least == min(row["divergence"] for row in of_share)
        (chosen,) = next(r["sites"] for r in of_share if r["planner"] == "loss").split()
        (kept,) = (done / checkpoint).glob("losses-skip-64.json")
        rises = {
            f"stages.{s}.{t}.retrieval": rise
            for s, stage in enumerate(json.loads(kept.read_text()))
            for t, rise in enumerate(stage)
            if t
        }
        assert chosen.rpartition(":")[0] == min(rises, key=rises.__getitem__)


@pytest.mark.slow
def test_equal_plans_are_trained_once_and_finished_ones_not_again(done, checkpoints, monkeypatch):
    each = tables_in(done)["Plans"]
    distinct = {(row["checkpoint"], row["sites"]) for row in each}
    results = list(done.glob("*/*/result.json"))
    assert len(results) == len(distinct) < len(each)
    before = (done / "table.json").read_text()
    again = sorted(results)[0]
    again.unlink()
    tuned = []

    def watched(*arguments, **options):
        tuned.append((options["output"].parent, options["resume"]))
        return finetune(*arguments, **options)

    monkeypatch.setattr(tuning, "finetune", watched)
    plans.run(checkpoints, done, **OPTIONS)
    assert tuned == [(again.parent, True)]
    assert (done / "table.json").read_text() == before


@pytest.mark.slow
def test_a_tuned_network_lacks_what_its_plan_skips_and_its_last_weights_count(done, checkpoints):
    for path in done.glob("*/*/result.json"):
        loaded = read_checkpoint(path.parent / "tuned-run" / "last.pt")
        actions = json.loads(path.read_text())["settings"]["actions"]
        (plan,) = loaded.header.plans
        assert {n: a for n, a in plan.actions.items() if a != "keep"} == actions
        assert loaded.header.metrics["epoch"] == OPTIONS["epochs"]


@pytest.mark.slow
def test_what_cannot_be_compared_is_said_before_anything_is_trained(done, checkpoints, tmp_path):
    for options, message in (
        ({"planner": ["best"]}, "got planner 'best', expected one of budget, score, loss"),
        ({"checkpoint": checkpoints[:1] * 2}, "two of the checkpoints are the same"),
    ):
        with pytest.raises(OptionError, match=message):
            plans.run(**{"checkpoint": checkpoints, "output": tmp_path, **OPTIONS, **options})
    assert not list(tmp_path.glob("*/*/result.json"))
    with pytest.raises(OptionError, match="holds a run with other settings .config .* then, "):
        plans.run(checkpoints, done, **{**OPTIONS, "epochs": 2})


@dataclass
class Planned:
    planner: str
    divergence: float = 0.0
    actions: dict = field(default_factory=dict)


def outcome(checkpoint, planner, accuracy, divergence=0.0, site="a"):
    figures = {"accuracy": accuracy / 100, "loss": 1.0}
    record = {"before": figures, "after": figures}
    planned = Planned(planner, divergence, {site: "skip"})
    return plans.Outcome(checkpoint, cast(Candidate, planned), record)


def test_a_plan_is_compared_with_the_random_ones_of_its_own_checkpoint():
    outcomes = [
        outcome("x", "budget", 50), outcome("x", "random", 40), outcome("x", "random", 50),
        outcome("y", "budget", 90), outcome("y", "random", 80), outcome("y", "random", 82),
    ]  # fmt: skip
    (row,) = plans.against_random(outcomes)
    assert row["planner"] == "budget"
    assert row["accuracy after"] == "+7.00 ± 2.00"  # of 5 and 9
    assert row["beats, after"] == "3.5 of 4"
    assert row["loss after"] == "+0.000 ± 0.000"


def test_the_rank_correlation_is_over_distinct_plans_and_minus_one_where_divergence_decides():
    outcomes = [
        outcome("x", planner, 90 - 10 * n, divergence=n**2, site=str(n))
        for planner in ("budget", "random")
        for n in range(4)
    ]
    (row,) = plans.correlations(outcomes)
    assert (row["plans"], row["accuracy after"], row["loss after"]) == (4, -1.0, "–")
    same = [outcome("x", "budget", 50, n, str(n)) for n in range(3)]
    assert plans.correlations(same)[0]["accuracy after"] == "–"

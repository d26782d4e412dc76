"""ELA by a predicted loss or a time, from a part of the first epoch on."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from ela_probe import ELA, SkipPlan, prune
from ela_probe.adapters.registry import adapter_for
from ela_probe.errors import OptionError, PlanError
from ela_probe.models.stand_in import StandIn
from ela_probe.pruning.cost_model import CostModel
from ela_probe.pruning.measure_costs import measure_costs
from ela_probe.training.ela.config import ELAConfig
from tests.support.costs import seconds
from tests.support.networks import network, one_stage, shapes
from tests.support.training import Classifier, batches, fitted, resumed_exactly

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*:FutureWarning")

ANY_LOSS = 1e6  # nats


class Steps(pl.Callback):
    """Records the number of stand-ins after each batch. Add it after ELA."""

    def __init__(self) -> None:
        self.stand_ins: list[int] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        self.stand_ins.append(sum(isinstance(m, StandIn) for m in pl_module.net.modules()))


def known_costs(path: Path) -> CostModel:
    """Costs of `network()` whose first stage's retrievals take longest."""
    batch = next(iter(batches()))
    measured = measure_costs(network(), (batch[0], batch[1]), rounds=1, progress=False)
    price = dict(zip([s.name for s in measured.stages], (4.0, 2.0, 1.0), strict=False))
    stages = tuple(
        stage.model_copy(
            update={
                "keep": seconds(price[stage.name]), "source": None, "skip": seconds(0.0),
                "affine": seconds(0.1), "recur": None, "start": None,
            }
        )
        for stage in measured.stages
    )  # fmt: skip
    costs = measured.model_copy(update={"base": seconds(10.0), "stages": stages})
    costs.save(path)
    return costs


def test_a_loss_without_bound_removes_all_that_the_guards_allow_at_the_end_of_the_warm_up() -> None:
    module, steps = Classifier(), Steps()
    ela = ELA(loss=ANY_LOSS, warmup=0.5)
    fitted(module, ela, steps, epochs=2)
    assert ela.plan is not None
    stages = ela.plan.stages
    most = sum(len(stage.sites) - 1 for stage in stages)
    assert steps.stand_ins == [0, most, most, most, most, most, most, most]
    assert all(sum(site.action == "keep" for site in stage.sites) == 1 for stage in stages)
    assert shapes(prune(network(), ela.plan)) == shapes(module.net)
    assert ela.plan.origin.epoch == 0


def test_what_a_loss_allows_is_predicted_to_cost_no_more() -> None:
    whole = ELA(loss=ANY_LOSS, warmup=1, every=1)
    fitted(Classifier(), whole, epochs=2)
    damages = [
        [
            estimate.mean
            for t in range(len(part.stage.sites))
            if (estimate := part.damage.of(t, "affine"))
        ]
        for part in whole.analysis.stages
        if part.damage is not None
    ]
    # Of each stage one retrieval at least is kept: all sets of sites that the guards allow.
    parts = [
        [sum(chosen) for k in range(len(stage)) for chosen in itertools.combinations(stage, k)]
        for stage in damages
    ]
    sizes = [
        [k for k in range(len(stage)) for _ in itertools.combinations(stage, k)]
        for stage in damages
    ]
    totals = [
        (sum(sums), sum(counts))
        for sums, counts in zip(itertools.product(*parts), itertools.product(*sizes), strict=True)
    ]
    allowed = min(total for total, count in totals if count == 3)
    most = max(count for total, count in totals if total <= allowed)
    ela = ELA(loss=allowed + 1e-9, warmup=1, freeze=1, every=1)
    fitted(Classifier(), ela, epochs=2)
    assert ela.plan is not None
    assert len(ela.plan.changes) == most
    assert ela.plan.origin.predicted_loss is not None
    assert ela.plan.origin.predicted_loss.mean <= allowed + 1e-9


def test_a_share_bounds_what_a_loss_allows_and_the_probe_stops_when_it_is_reached() -> None:
    ela = ELA(loss=ANY_LOSS, skip=0.45, warmup=1)
    measured = []

    class Measured(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            measured.append(ela.measured)

    fitted(Classifier(), ela, Measured(), epochs=4)
    assert ela.plan is not None
    assert len(ela.plan.changes) == 4
    assert measured == [True, False, False, False]


def test_a_time_is_reached_by_the_removals_that_save_most(tmp_path: Path) -> None:
    costs = known_costs(tmp_path / "costs.json")
    full = costs.predict({})
    ela = ELA(time=0.9, warmup=0.5, costs=tmp_path / "costs.json")
    fitted(Classifier(), ela, epochs=2)
    assert ela.plan is not None
    assert costs.predict(ela.plan.actions) <= 0.9 * full
    # Without one of them the time is not reached: no removal is in vain.
    for name in ela.plan.changes:
        fewer = {n: a for n, a in ela.plan.actions.items() if n != name}
        assert costs.predict(fewer) > 0.9 * full
    assert ela.summary()["time"] == pytest.approx(costs.predict(ela.plan.actions) / full)


def test_a_time_that_no_plan_reaches_gives_the_fastest(tmp_path: Path) -> None:
    costs = known_costs(tmp_path / "costs.json")
    ela = ELA(time=0.01, warmup=1, freeze=3, costs=tmp_path / "costs.json")
    fitted(Classifier(), ela, epochs=4)
    assert ela.plan is not None
    assert not ela.measured  # after epoch 1 there was nothing left to remove
    assert ela.plan.origin.epoch == 1
    assert all(
        action == "affine"
        for stage in ela.plan.stages
        for action in [site.action for site in stage.sites][1:]
    )
    assert ela.summary()["time"] > 0.01
    assert costs.predict(ela.plan.actions) < costs.predict({})


def test_a_loss_is_not_exceeded_for_a_time(tmp_path: Path) -> None:
    known_costs(tmp_path / "costs.json")
    ela = ELA(time=0.01, loss=1e-12, warmup=1, freeze=1, costs=tmp_path / "costs.json")
    fitted(Classifier(), ela, epochs=2)
    assert ela.plan is not None
    assert ela.plan.origin.predicted_loss is not None
    assert ela.plan.origin.predicted_loss.mean <= 1e-12


def test_costs_are_measured_where_none_are_given() -> None:
    torch.manual_seed(0)
    ela = ELA(time=0.9, warmup=0.5)
    fitted(Classifier(), ela, epochs=2)
    assert ela.plan is not None
    # Whatever the times were, they are of this network, and the plan's time follows from them.
    assert 0 < ela.summary()["time"] <= 1.0 + 1e-9


def test_costs_can_not_be_measured_on_a_batch_of_another_form() -> None:
    class Triples(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return super().training_step(batch[:2], batch_idx)

    images, labels = next(iter(batches()))
    loader = DataLoader(TensorDataset(images, labels, labels), 4)
    with pytest.raises(OptionError, match=r"labels, got Tensor, Tensor, Tensor; .*costs=FILE"):
        fitted(Triples(), ELA(time=0.9, warmup=0.5), epochs=2, loader=loader)


def test_costs_of_another_model_are_refused_before_training(tmp_path: Path) -> None:
    known_costs(tmp_path / "costs.json")
    with pytest.raises(PlanError, match="were measured on another model"):
        fitted(Classifier(one_stage()), ELA(time=0.9, costs=tmp_path / "costs.json"), epochs=2)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_run_by_loss_resumes_exactly(tmp_path: Path, kind: str) -> None:
    _, ela = resumed_exactly(tmp_path, kind, loss=0.05, warmup=0.5)
    assert ela.plan is not None
    assert ela.plan.changes


def test_measured_costs_are_resumed_and_not_measured_again(tmp_path: Path) -> None:
    ela = ELA(time=0.9, loss=1e-12, warmup=0.5)
    module = Classifier()
    fitted(module, ela, epochs=2)
    again = ELA(time=0.9, loss=1e-12, warmup=0.5)
    other = Classifier()
    again.rebuild(other, ela.state_dict())
    again.load_state_dict(ela.state_dict())
    assert again.summary()["time"] == ela.summary()["time"]
    assert adapter_for(other.net) is not None


def test_a_ramp_may_start_within_the_first_epoch() -> None:
    steps = Steps()
    ela = ELA(skip=0.45, warmup=0.25, ramp=2, action="affine")
    fitted(Classifier(), ela, steps, epochs=3)
    assert steps.stand_ins == [2, 2, 2, 2, 4, 4, 4, 4, 4, 4, 4, 4]


def test_the_share_of_an_epoch_is_the_mean_over_its_batches() -> None:
    ela = ELA(loss=ANY_LOSS, skip=0.45, warmup=0.5)
    rows = []

    class Rows(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            rows.append(ela.row["skipped"])

    fitted(Classifier(), ela, Rows(), epochs=2)
    assert rows == pytest.approx([4 / 9 / 2, 4 / 9])


def test_a_part_of_an_epoch_needs_its_length() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(batches().dataset)

    loader: DataLoader[Any] = DataLoader(Stream(), 8)
    with pytest.raises(OptionError, match="the data loader has no length"):
        fitted(Classifier(), ELA(loss=0.1, warmup=0.5, freeze=2), epochs=3, loader=loader)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": 0.0}, "loss 0.0: Input should be greater than 0"),
        ({"loss": 0.1, "ramp": 3}, "leave out ramp and stochastic"),
        ({"time": 0.7, "stochastic": True}, "leave out ramp and stochastic"),
        ({"loss": 0.1, "planner": "score"}, "need planner=damage and action=skip or affine, got"),
        ({"time": 0.7, "action": "recur"}, "need planner=damage and action=skip or affine, got"),
        ({"costs": "costs.json"}, "costs: only a run with time=... uses them"),
        ({"loss": 0.1, "costs": "costs.json"}, "costs: only a run with time=... uses them"),
        ({"warmup": 1.5}, "warmup: got 1.5, expected whole epochs, or a part of the first one"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        ELAConfig.of(**settings)


def test_the_defaults_follow_from_what_decides() -> None:
    ramp, goal = ELAConfig(), ELAConfig(loss=0.02)
    assert (ramp.skip, ramp.planner, ramp.action) == (0.3, "score", "skip")
    assert (goal.skip, goal.planner, goal.action) == (None, "damage", "affine")
    assert goal.schedule(10).last == 8
    assert ELAConfig(time=0.7, warmup=0.25).schedule(1).last == 0.25
    assert ELAConfig(loss=0.02, freeze=3, warmup=0.5).schedule(None).last == 3


def test_a_plan_of_a_run_by_loss_is_written_and_loads(tmp_path: Path) -> None:
    ela = ELA(loss=ANY_LOSS, skip=0.45, warmup=0.5, path=tmp_path / "plan.json")
    fitted(Classifier(), ela, epochs=2)
    assert SkipPlan.load(tmp_path / "plan.json") == ela.plan

"""The ELA callback in a user's Trainer: what it removes and when, and what it leaves alone."""

import copy
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl

from ela_probe import ELA, SkipPlan, prune
from ela_probe.errors import (
    CheckpointError,
)
from tests.support.networks import equal_states, hooks, shapes, sites
from tests.support.training import Classifier, Watch, fitted, resumed_exactly

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*:FutureWarning")


@pytest.mark.parametrize("action", ["skip", "drop", "recur"])
def test_in_anyones_trainer_it_warms_up_ramps_and_leaves_a_smaller_network(
    tmp_path: Path, action: str
) -> None:
    module, watch = Classifier(), Watch()
    original = copy.deepcopy(module.net)
    ela = ELA(skip=0.45, warmup=2, ramp=2, action=action, path=tmp_path / "plan.json")
    fitted(module, ela, watch)
    assert [len(names) for names in watch.sites] == [9, 9, 7, 5, 5]
    for earlier, later in itertools.pairwise(watch.sites):
        assert set(later) <= set(earlier)
    for stage in range(3):
        assert f"stages.{stage}.0.retrieval" in watch.sites[-1]
    assert all(watch.known)
    assert [m["ela_skipped"] for m in watch.logged] == pytest.approx([0, 0, 2 / 9, 4 / 9, 4 / 9])
    assert all(m["ela_ebqm_seconds"] >= 0 for m in watch.logged)
    plan = SkipPlan.load(tmp_path / "plan.json")
    assert plan == ela.plan
    assert shapes(prune(original, plan)) == shapes(module.net)
    assert list(prune(original, plan).state_dict()) == list(module.net.state_dict())
    assert ela.share == pytest.approx(4 / 9)
    assert (plan.origin.epoch, plan.origin.planner, plan.origin.split) == (3, "score", "train")
    assert hooks(module) == []
    assert "on_load_checkpoint" not in vars(module)
    assert 0 < ela.seconds < ela.trained
    assert np.isfinite(module.losses).all()


@pytest.mark.parametrize("planner", ["score", "budget"])
def test_the_guards_hold(planner: str) -> None:
    module = Classifier()
    fitted(
        module, ELA(skip=0.34, warmup=1, ramp=1, max_run=1, min_keep=2, planner=planner), epochs=2
    )
    left = sites(module.net)
    assert len(left) == 6
    assert all(sum(name.startswith(f"stages.{s}.") for name in left) == 2 for s in range(3))


def test_probing_changes_nothing_of_the_training() -> None:
    plain, probed = Classifier(), Classifier()
    fitted(plain, epochs=3)
    fitted(probed, ELA(skip=0.3, warmup=3, ramp=1, every=1), epochs=4)
    assert probed.losses[: len(plain.losses)] == plain.losses


def test_the_averages_are_those_of_a_probe_over_the_same_passes() -> None:
    from ela_probe import AttentionProbe

    class Check(pl.Callback):
        def __init__(self) -> None:
            self.found: list[np.ndarray] = []

        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            self.probe = AttentionProbe(pl_module.net).__enter__()

        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            self.probe.__exit__(None)
            self.found.append(self.probe.metrics["stages.1"].compute()["kl"].numpy())

    check, ela = Check(), ELA(skip=0.3, warmup=2, ramp=1, every=1, decay=0.6)
    module = Classifier()
    fitted(module, check, ela, epochs=3)
    by_hand = 0.6 * check.found[0] + 0.4 * check.found[1]
    np.testing.assert_allclose(
        ela.analysis.stage("stages.1").divergences["kl"], by_hand, rtol=1e-12
    )


def test_once_the_plan_is_final_nothing_is_probed() -> None:
    class Forbidden(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
            if trainer.current_epoch >= 1:
                assert hooks(pl_module) == []

    ela = ELA(skip=0.3, warmup=1, ramp=3, freeze=1, every=1)
    module = Classifier()
    fitted(module, ela, Forbidden(), epochs=3)
    assert ela.share == pytest.approx(1 / 9)
    assert ela.plan.origin.epoch == 1


class Steps(pl.Callback):
    """Which sites each step ran with, as its backward pass ended."""

    def __init__(self) -> None:
        self.ran: dict[tuple[int, int], list[str]] = {}
        self.between: set[int] = set()

    def on_after_backward(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.ran[trainer.current_epoch, trainer.global_step] = sites(pl_module.net)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.between.add(len(sites(pl_module.net)))


def test_stochastic_skipping_is_drawn_by_its_seed_and_ends_with_the_freeze() -> None:
    runs = []
    for seed in (0, 0, 1):
        steps, module = Steps(), Classifier(kind="adamw")
        ela = ELA(skip=0.5, warmup=1, ramp=2, freeze=3, stochastic=True, every=4, seed=seed)
        fitted(module, ela, steps, epochs=4)
        runs.append((steps, module, ela))
    (first, one, ela), (again, two, _), (other, _, _) = runs
    assert first.ran == again.ran
    assert equal_states(one.net, two.net)
    assert first.ran != other.ran
    counts = [[len(s) for (epoch, _), s in first.ran.items() if epoch == e] for e in range(4)]
    assert counts[0] == [9] * 4
    assert min(counts[1] + counts[2]) < 9
    assert all(count[2] == 9 for count in counts[:3])  # the probed batch runs whole
    assert counts[3] == [4] * 4
    assert first.between == {9, 4}
    for names in first.ran.values():
        assert all(f"stages.{s}.0.retrieval" in names for s in range(3))
    assert ela.plan.origin.epoch == 3
    assert hooks(one) == []


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_lightnings_own_checkpoints_resume_exactly_on_a_fresh_module(
    tmp_path: Path, kind: str
) -> None:
    whole, ela = resumed_exactly(tmp_path, kind, skip=0.75, warmup=1, ramp=3, action="drop")
    with pytest.raises(CheckpointError, match=r"pruned further than the checkpoint's, by stages\."):
        fitted(whole, ela, epochs=6, ckpt_path=tmp_path / "epoch=0.ckpt")

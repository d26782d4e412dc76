"""Training runs with ELA: their checkpoints, and resuming one that was interrupted or killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from ela_probe_cli import main

from ela_probe import SkipPlan, load_checkpoint
from ela_probe.checkpoint import read_checkpoint
from ela_probe.pipeline import train as verb
from ela_probe.training.trainer import TrainingInterrupted, fit
from tests.support.image_sets import write_images
from tests.support.networks import sites
from tests.support.training import InterruptAt, equal_runs, train_command, trained

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*:FutureWarning")


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "set", size=8)


@pytest.fixture(scope="module")
def whole(prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return trained(prefix, tmp_path_factory.mktemp("whole"))


def without_seconds(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in rows]


def test_a_run_writes_checkpoints_that_rebuild_the_pruned_network(whole: Any) -> None:
    folder = whole.last.parent
    plan = SkipPlan.load(folder / "plan.json")
    assert plan.share == pytest.approx(0.5)
    assert plan.origin.model == "mrla_b_resnet14"
    assert plan.origin.data.startswith("npz:")
    last = read_checkpoint(whole.last)
    assert last.header.plans == (plan,)
    assert len(sites(load_checkpoint(whole.last))) == 3
    best = read_checkpoint(whole.best)
    skipped = next(
        row["skipped"] for row in whole.history if row["epoch"] == best.header.metrics["epoch"]
    )
    assert sum(p.share for p in best.header.plans) == pytest.approx(skipped)
    assert [row["skipped"] for row in whole.history] == pytest.approx(
        [0, 1 / 6, 2 / 6, 3 / 6, 3 / 6]
    )
    assert whole.log.read_text().splitlines()[0].endswith("seconds,skipped,ebqm_seconds")
    assert whole.ela["plan"] == folder / "plan.json"
    assert whole.ela["ebqm_seconds"] == pytest.approx(
        sum(row["ebqm_seconds"] for row in whole.history), abs=1e-4
    )


@pytest.mark.parametrize(("epoch", "batch"), [(0, 2), (1, 1), (3, 5), (4, 0)])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(
    prefix: Path, tmp_path: Path, whole: Any, monkeypatch: pytest.MonkeyPatch,
    epoch: int, batch: int,
) -> None:  # fmt: skip

    def cut(*arguments: Any, callbacks: list[pl.Callback], **options: Any) -> Any:
        return fit(*arguments, callbacks=[*callbacks, InterruptAt(epoch, batch)], **options)

    monkeypatch.setattr(verb, "fit", cut)
    with pytest.raises(TrainingInterrupted):
        trained(prefix, tmp_path)
    monkeypatch.undo()
    result = trained(prefix, tmp_path, resume=epoch > 0)
    assert equal_runs(tmp_path, whole.last.parent)
    assert without_seconds(result.history) == without_seconds(whole.history)


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_as_if_it_had_not_been(
    prefix: Path, tmp_path: Path, whole: Any
) -> None:
    """Killed while it writes its state of the third epoch, whose `last.pt` is there already."""
    words = train_command(prefix, tmp_path)
    killed = subprocess.run(
        [sys.executable, "-m", "tests.support.killed_run", "write:resume.ckpt:2", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "plan.json").exists() or SkipPlan.load(tmp_path / "plan.json")
    assert main([*words, "--resume"]) == 0
    assert equal_runs(tmp_path, whole.last.parent)

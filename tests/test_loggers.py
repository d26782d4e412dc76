"""`train --logger`: the loggers get the rows of metrics.csv, and a resumed run goes on in them."""

import csv
import importlib.util
from pathlib import Path
from typing import Any

import pytest
from ela_probe_cli import main

from ela_probe.errors import OptionError
from ela_probe.training.loggers import parse_loggers
from tests.support.commands import run as command
from tests.support.image_sets import write_images
from tests.support.training import train_command, trained

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*:FutureWarning")
ROWS = ("train_loss", "val_accuracy", "skipped", "seconds")
STAGES = tuple(f"stages.{s}" for s in range(3))


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "set", size=8)


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def board(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), {"scalars": 0, "images": 0})
    return events.Reload()


def scalars(events: Any, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(name)]


@pytest.fixture(scope="module")
def run(prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of five epochs with ELA; the plan is final after the third."""
    folder = tmp_path_factory.mktemp("run")
    trained(prefix, folder, loggers=["tensorboard"])
    return folder


def test_tensorboard_holds_the_rows_of_the_csv_file(run: Path) -> None:
    events, table = board(run), rows(run)
    for name in ROWS:
        steps, values = zip(*scalars(events, name), strict=True)
        assert steps == tuple(int(row["epoch"]) for row in table)
        assert values == pytest.approx([float(row[name]) for row in table], rel=1e-6)


def test_divergences_and_figures_follow_the_epochs_that_were_probed(run: Path) -> None:
    events = board(run)
    for stage in STAGES:
        found = scalars(events, f"divergence/{stage}")
        assert [epoch for epoch, _ in found] == [1, 2, 3]
        assert all(kl >= 0 for _, kl in found)
        assert [image.step for image in events.Images(f"kl-{stage}")] == [1, 2, 3]
    assert [image.step for image in events.Images("adjacent")] == [1, 2, 3]
    assert [image.step for image in events.Images("plan")] == [1, 2, 3]
    assert not [name for name in events.Tags()["scalars"] if name.startswith("damage/")]


def test_logging_does_not_change_what_is_trained(run: Path, prefix: Path, tmp_path: Path) -> None:
    trained(prefix, tmp_path)
    without = [{**row, "seconds": "", "ebqm_seconds": ""} for row in rows(tmp_path)]
    assert [{**row, "seconds": "", "ebqm_seconds": ""} for row in rows(run)] == without
    assert not (tmp_path / "tensorboard").exists()


def test_a_resumed_run_goes_on_in_the_same_folder(
    prefix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    from ela_probe.training.record import WriteLastEpoch

    words = [*train_command(prefix, tmp_path), "--logger", "csv,tensorboard"]
    original = WriteLastEpoch.on_train_epoch_end

    def stop_after_two(self: Any, *given: Any) -> None:
        original(self, *given)
        if len(self.history.rows) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(WriteLastEpoch, "on_train_epoch_end", stop_after_two)
        assert main([*map(str, words)]) == 130
    assert [e for e, _ in scalars(board(tmp_path), "train_loss")] == [1, 2]
    command(capsys, *words, "--resume")
    assert [e for e, _ in scalars(board(tmp_path), "train_loss")] == [1, 2, 3, 4, 5]
    assert not (tmp_path / "tensorboard-1").exists()


def test_damage_is_logged_where_it_is_measured(
    prefix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "train", "--model", "mrla_b_resnet14", "--data", f"npz:{prefix}", "--epochs", "2",
        "--batch-size", "16", "--ela", "skip=0.4,warmup=1,ramp=1,planner=damage", "--device", "cpu",
        "-o", tmp_path, "--logger", "tensorboard",
    ]  # fmt: skip
    command(capsys, *words)
    assert [e for e, _ in scalars(board(tmp_path), "damage/stages.0")] == [1]


@pytest.mark.skipif(not importlib.util.find_spec("mlflow"), reason="mlflow is not installed")
def test_mlflow_holds_rows_figures_and_settings(
    prefix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    trained(prefix, tmp_path / "run", loggers=["mlflow"])
    client = MlflowClient((tmp_path / "run" / "mlruns").resolve().as_uri())
    [experiment] = [e for e in client.search_experiments() if e.name == "ela-probe"]
    [found] = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["config/epochs"] == "5"
    history = client.get_metric_history(found.info.run_id, "train_loss")
    assert [metric.step for metric in history] == [1, 2, 3, 4, 5]
    assert [f.path for f in client.list_artifacts(found.info.run_id, "figures")] == [
        f"figures/epoch-{epoch:04d}" for epoch in (1, 2, 3)
    ]


@pytest.mark.skipif(not importlib.util.find_spec("wandb"), reason="wandb is not installed")
def test_wandb_writes_an_offline_run(
    prefix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    trained(prefix, tmp_path / "run", loggers=["wandb"])
    [run] = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert list(run.glob("*.wandb"))
    assert list(run.glob("files/media/images/plan_*.png"))


def test_a_name_that_is_unknown_is_refused() -> None:
    with pytest.raises(OptionError, match=r"got --logger 'tensorbord', .*did you mean 'tensorb"):
        parse_loggers("csv,tensorbord")
    assert parse_loggers("csv") == ()
    assert parse_loggers("tensorboard, csv,tensorboard") == ("tensorboard",)


def test_a_missing_package_is_told_before_anything_is_written(
    prefix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "wandb" else found(name, *a)
    )
    words = [*train_command(prefix, tmp_path / "run"), "--logger", "csv,wandb"]
    line = command(capsys, *words, code=2)
    assert "pip install 'ela-probe[wandb]'" in line
    assert not (tmp_path / "run").exists()

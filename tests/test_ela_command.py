"""`ela-probe train --ela`: what it prints and what it refuses."""

from pathlib import Path

import pandas as pd
import pytest
from ela_probe_cli import main

from ela_probe.pruning.plan import SkipPlan
from ela_probe.report import plots
from ela_probe.training.ela.config import ELAConfig
from tests.support.commands import run as command
from tests.support.image_sets import write_images

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*:FutureWarning")


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "set", size=8)


def test_the_command_says_what_ela_did_and_cost(
    prefix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "train", "--model", "mrla_b_resnet14", "--data", f"npz:{prefix}", "--epochs", "2",
        "--batch-size", "16", "--ela", "skip=0.4,warmup=1,ramp=1", "--device", "cpu",
        "-o", tmp_path,
    ]  # fmt: skip
    document = command(capsys, *words)
    assert document["ela"]["plan"] == str(tmp_path / "plan.json")
    assert (document["ela"]["skipped"], document["ela"]["retrievals"]) == (2, 6)
    assert 0 < document["ela"]["ebqm_share"] < 1
    assert document["final"]["skipped"] == pytest.approx(1 / 3)
    check_site_history(tmp_path)
    assert main([*map(str, words)]) == 0
    out, err = capsys.readouterr()
    assert "ELA skips 2 of 6 retrievals (33%); probing and planning took" in out
    assert "skipped 33%" in err
    words[words.index("--ela") + 1] = "skip=0.5,warmup=1,ramp=1"
    line = command(capsys, *words, "--resume", code=2)
    assert "ela skip 0.4 then, 0.5 now" in line
    del words[words.index("--ela") : words.index("--ela") + 2]
    assert "ela skip 0.4 then, None now" in command(capsys, *words, "--resume", code=2)


def check_site_history(folder: Path) -> None:
    """ela.csv has every site after every epoch until the plan, which it ends with, is final."""
    table = pd.read_csv(folder / "ela.csv")
    assert list(table["epoch"]) == [1] * 6
    plan = SkipPlan.load(folder / "plan.json")
    last = table.set_index("site")
    assert dict(last["action"]) == plan.actions
    assert last["kl"].isna().sum() == 3  # the first sites of three stages
    _, axes = plots.site_history(table)
    assert len(axes.patches) == len(plan.skipped)
    _, axes = plots.skipping_history(pd.read_csv(folder / "metrics.csv"))
    labels = axes.get_legend_handles_labels()[1]
    assert labels == ["retrievals skipped", "training accuracy", "validation accuracy"]


@pytest.mark.parametrize(
    ("model", "ela", "message"),
    [
        ("mrla_b_resnet14", "skip", "expected name=value"),
        ("mrla_b_resnet14", "skip=2", "skip '2'"),
        ("mrla_b_resnet14", "warmup=9,ramp=9", "no epoch trains with it"),
        ("mrla_b_resnet14", "skip=0.9", "cannot skip 5 of 6"),
        ("resnet14", "skip=0.5", "no layer attention found"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(
    prefix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    model: str, ela: str, message: str,
) -> None:  # fmt: skip
    words = ["train", "--model", model, "--data", f"npz:{prefix}", "--epochs", "3"]
    line = command(capsys, *words, "--ela", ela, "-o", tmp_path, "--device", "cpu", code=2)
    assert message in line


def test_the_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    from ela_probe_cli.train import ELA_HELP

    assert all(name in ELA_HELP for name in ELAConfig.model_fields)

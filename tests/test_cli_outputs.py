"""Commands run twice, or onto their own inputs: nothing that exists is lost."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
from ela_probe_cli import main

from ela_probe.checkpoint import read_checkpoint
from ela_probe.errors import OutputError
from ela_probe.pipeline.prune import prune_checkpoint
from ela_probe.pipeline.train import finetune
from ela_probe.pruning.plan import SkipPlan
from ela_probe.training.config import TrainConfig
from tests.support.commands import run
from tests.support.image_sets import write_images

CPU = ["--device", "cpu"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    write_images(folder / "set", size=8)
    words = ["train", "--model", "mrla_b_resnet14", "--data", f"npz:{folder / 'set'}", *CPU]
    assert main([*words, "--epochs", "1", "--batch-size", "30", "-o", str(folder / "run")]) == 0
    best = folder / "run" / "best.pt"
    assert main(["analyze", str(best), "-o", str(folder / "an"), "--no-figures", *CPU]) == 0
    assert main(["plan", str(folder / "an")]) == 0
    return folder


@pytest.fixture
def files(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained files."""
    return Path(shutil.copytree(trained, tmp_path / "files"))


def contents(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file, by its path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


INPUTS = {
    "prune": ["prune", "run/best.pt", "--plan", "an/plan.json", "-o", "run/best.pt"],
    "prune onto the plan": ["prune", "run/best.pt", "--plan", "an/plan.json", "-o", "an/plan.json"],
    "finetune": ["finetune", "run/best.pt", "-o", "run/best.pt"],
    "finetune into the run": ["finetune", "x-run/best.pt", "-o", "x.pt"],
    "costs": ["costs", "run/best.pt", "-o", "run/best.pt"],
    "compare": ["compare", "run/best.pt", "run/last.pt", "-o", "run/last.pt"],
    "plan": ["plan", "an", "-o", "an/analysis.json"],
    "report": ["report", "an", "-o", "an/plan.json"],
    "report onto the sums": ["report", "an", "-o", "an/arrays.npz"],
    "through a link": ["prune", "link.pt", "--plan", "an/plan.json", "-o", "run/best.pt"],
}


@pytest.mark.parametrize("case", INPUTS)
def test_an_input_is_never_replaced(
    case: str, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(files)
    shutil.copytree("run", "x-run")
    Path("link.pt").symlink_to("run/best.pt")
    before = contents(files)
    line = run(capsys, *INPUTS[case], code=2)
    assert "is the input" in line
    assert contents(files) == before


@pytest.mark.parametrize("verb", ["prune", "finetune", "finetune into the run"])
def test_a_verb_called_from_python_never_replaces_its_checkpoint(verb: str, files: Path) -> None:
    path = files / "x-run" / "best.pt" if "run" in verb else files / "run" / "best.pt"
    path.parent.mkdir(exist_ok=True)
    if not path.exists():
        shutil.copy(files / "run" / "best.pt", path)
    checkpoint, before = read_checkpoint(path), contents(files)
    with pytest.raises(OutputError, match="is the input"):
        if verb == "prune":
            plan = SkipPlan.load(files / "an" / "plan.json")
            prune_checkpoint(checkpoint, plan, output=path.parent / "." / path.name)
        else:
            output = files / "x.pt" if "run" in verb else path
            finetune(checkpoint, TrainConfig(epochs=1), output=output)
    assert contents(files) == before


TWICE: dict[str, tuple[list[str], str]] = {
    "plan": (["plan", "an", "--skip", "0"], "an/plan-1.json"),
    "prune": (
        ["prune", "run/best.pt", "--plan", "an/plan.json", "-o", "run/last.pt"], "run/last-1.pt"
    ),
    "costs": (
        ["costs", "run/best.pt", "--rounds", "1", "--batch-size", "4", "-o", "an/plan.json"],
        "an/plan-1.json",
    ),
    "finetune": (
        ["finetune", "run/best.pt", "--epochs", "1", "--batch-size", "30", "-o", "an/plan.json"],
        "an/plan-1.json",
    ),
    "compare": (
        ["compare", "run/best.pt", "--repeats", "3", "--batch-size", "4", "-o", "an/plan.json"],
        "an/plan-1.json",
    ),
    "report": (["report", "an", "-o", "run/last.pt"], "run/last-1.pt"),
}  # fmt: skip


@pytest.mark.parametrize("case", TWICE)
def test_a_file_that_exists_is_kept_beside(
    case: str, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(files)
    words, kept = TWICE[case]
    before = contents(files)
    run(capsys, *words)
    after = contents(files)
    original = kept.replace("-1.", ".")
    assert after[kept] == before[original] != after[original]
    assert {name: after[name] for name in before if name != original} == {
        name: value for name, value in before.items() if name != original
    }


def test_folders_are_kept_as_a_whole(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ela_probe import Analysis

    monkeypatch.chdir(files)
    before = contents(files)
    run(capsys, "analyze", "run/best.pt", "-o", "an", "--no-figures", "--limit", 20, *CPU)
    after = contents(files)
    for name in ("analysis.json", "pairs.csv", "sites.csv", "arrays.npz"):
        assert after[f"an-1/{name}"] == before[f"an/{name}"]
    assert after["an/plan.json"] == before["an/plan.json"]
    samples = [Analysis.load(name).provenance.samples for name in ("an-1", "an")]
    assert samples == [54, 20]

    words = ["train", "--model", "mrla_b_resnet8", "--data", "npz:set", "--epochs", 1, *CPU]
    run(capsys, *words, "-o", "run")
    after = contents(files)
    for name in ("best.pt", "last.pt", "metrics.csv", "resume.ckpt"):
        assert after[f"run-1/{name}"] == before[f"run/{name}"] != after[f"run/{name}"]
    run(capsys, *words, "-o", "run", "--resume")
    assert not Path("run-2").exists()
    assert "unknown" in run(capsys, *words, "-o", "run", "--device", "tpu", code=2)
    run(capsys, *words, "-o", "run", "--resume", "--lr", 1, code=2)
    assert not Path("run-2").exists()
    assert contents(files)["run/best.pt"] == after["run/best.pt"]


@pytest.mark.slow
def test_the_tour_runs_twice(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The verbs of README's tour in their order, on small images."""
    monkeypatch.chdir(files)
    small = ["--batch-size", 30, *CPU]
    tour: list[list[Any]] = [
        ["train", "--model", "mrla_b_resnet14", "--data", "npz:set", "--epochs", 1, *small,
         "-o", "runs/digits"],
        ["analyze", "runs/digits/best.pt", "--no-figures", *CPU, "-o", "runs/digits/analysis"],
        ["plan", "runs/digits/analysis", "--skip", 0.3, "-o", "plan.json"],
        ["prune", "runs/digits/best.pt", "--plan", "plan.json", "-o", "pruned.pt"],
        ["finetune", "pruned.pt", "-o", "tuned.pt", "--epochs", 1, *small],
        ["report", "runs/digits/analysis", "--plan", "plan.json"],
    ]  # fmt: skip
    for _ in range(2):
        for words in tour:
            run(capsys, *words)
    assert {path.name for path in Path("runs").iterdir()} == {"digits", "digits-1"}


def test_a_run_that_fails_at_once_leaves_no_folder(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(files)
    words = ["train", "--data", "npz:set", "--epochs", 2, *CPU, "-o", "new"]
    line = run(capsys, *words, "--model", "resnet14", "--ela", "skip=0.3,warmup=1", code=2)
    assert "no layer attention found" in line
    run(capsys, *words, "--model", "mrla_b_resnet14", "--precision", "16-mixed", code=2)
    assert not Path("new").exists()


def test_a_plan_that_changes_nothing_says_so(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(files)
    assert main(["plan", "an", "--skip", "0", "-o", "none.json"]) == 0
    assert "keeps every retrieval" in capsys.readouterr().err
    assert main(["prune", "run/best.pt", "--plan", "none.json", "-o", "same.pt"]) == 0
    assert "holds the same network" in capsys.readouterr().err


def test_a_factory_beside_the_checkpoints_own_model_is_refused(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = files / "run" / "best.pt"
    for verb in ("discover", "analyze", "costs", "compare", "finetune"):
        line = run(capsys, verb, best, "--factory", "tests.test_cli:main", code=2)
        assert "names its model itself, mrla_b_resnet14; leave out --factory" in line

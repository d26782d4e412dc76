"""The notebooks: committed clean, and each runs from top to bottom."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

from ela_probe.data.opening import open_data
from ela_probe.models.registry import ModelSpec
from ela_probe.pipeline.train import train
from ela_probe.training.config import TrainConfig
from tests.support.synthetic_analyses import make_analysis

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "ela_probe" / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
# The number of pictures that each cell shows, and that of tables.
SHOWN = {
    "02_checkpoint_to_pruned": (2, 2),
    "03_ebqm": (3, 4),
    "04_ablation": (1, 4),
    "05_own_model": (1, 1),
    "06_language_model": (2, 3),
}


def run(name: str, where: Path, **environment: str) -> list[dict[str, Any]]:
    """The outputs of every code cell, from a process of its own with a configuration of its own."""
    result = where / "outputs.json"
    path = FOLDER / f"{name}.ipynb" if "/" not in name else Path(name)
    words = [sys.executable, "-m", "tests.support.run_notebook", str(path), str(result)]
    done = subprocess.run(
        words, cwd=where, capture_output=True, text=True, check=False,
        env=os.environ | environment | {
            "PYTHONPATH": str(ROOT), "IPYTHONDIR": str(where / "ipython"), "TMPDIR": str(where),
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outputs: list[dict[str, Any]] = json.loads(result.read_text())
    # A widget prints the error of its function and goes on.
    assert not any("Traceback" in cell["printed"] for cell in outputs)
    return outputs


def counted(outputs: list[dict[str, Any]], kind: str) -> list[int]:
    return [sum(kind in shown for shown in cell["displayed"]) for cell in outputs]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network that was trained on the digits, for the notebooks that need one."""
    data = open_data("digits", limit=300, seed=0)
    settings = TrainConfig.of(epochs=1, batch_size=32, lr=0.03)
    spec = ModelSpec(name="mrla_b_resnet20")
    folder = tmp_path_factory.mktemp("trained")
    return train(spec, data, settings, output=folder, progress=False, device="cpu").best


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_committed_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


def test_the_numbers_run_from_one() -> None:
    assert [path.name[:3] for path in PATHS] == [f"{n:02}_" for n in range(1, len(PATHS) + 1)]


@pytest.mark.slow
def test_01_explores_two_analyses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.support.commands import run as command

    for seed, name in enumerate(("one", "other")):
        make_analysis((4, 2), samples=30, seed=seed).save(tmp_path / name)
    words = [
        "notebook",
        tmp_path / "one",
        "--other",
        tmp_path / "other",
        "-o",
        tmp_path / "x.ipynb",
    ]
    copied = command(capsys, *words)["notebook"]
    outputs = run(copied, tmp_path, ELA_PROBE_ANALYSIS=str(tmp_path / "nowhere"))
    # Two heatmaps; no heads; each retrieval against the one before; damage; a Beta fit a stage; the
    # plan over the heatmap and by itself; the curve; two heatmaps in one figure; the plan.
    assert counted(outputs, "image/png") == [0, 0, 0, 0, 2, 0, 0, 1, 1, 2, 2, 1, 1, 1]
    tables = counted(outputs, "text/html")
    assert [n for n, count in enumerate(tables) if count] == [2, 4, 5, 9]
    assert "heads can't be told apart" in outputs[6]["printed"]
    assert "of 6 retrievals are not formed" in outputs[10]["printed"]
    assert (tmp_path / "plans" / "explored.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", SHOWN)
def test_runs_and_shows_its_figures_and_tables(name: str, tmp_path: Path, checkpoint: Path) -> None:
    outputs = run(name, tmp_path, ELA_PROBE_CHECKPOINT=str(checkpoint))
    shown = sum(counted(outputs, "image/png")), sum(counted(outputs, "text/html"))
    assert shown == SHOWN[name]


def test_01_says_how_to_make_an_analysis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELA_PROBE_ANALYSIS", str(tmp_path / "nowhere"))
    notebook = nbformat.read(FOLDER / "01_explore.ipynb", as_version=4)
    parameters, first = [cell for cell in notebook.cells if cell.cell_type == "code"][:2]
    source = parameters.source + "\n" + first.source.replace("%matplotlib inline", "")
    with pytest.raises(SystemExit, match=r"nowhere(.|\n)*ela-probe notebook DIR"):
        exec(source, {})

"""The notebook: committed clean, and it runs from top to bottom on an analysis folder."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.support.synthetic_analyses import make_analysis

ROOT = Path(__file__).resolve().parents[1]
PATH = ROOT / "notebooks" / "01_explore.ipynb"


def run(folder: Path, where: Path) -> list[dict[str, Any]]:
    """The outputs of every code cell, from a process of its own with a configuration of its own."""
    environment = os.environ | {
        "ELA_PROBE_ANALYSIS": str(folder),
        "PYTHONPATH": str(ROOT),
        "IPYTHONDIR": str(where / "ipython"),
    }
    result = where / "outputs.json"
    words = [sys.executable, "-m", "tests.support.run_notebook", str(PATH), str(result)]
    done = subprocess.run(
        words, cwd=where, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    outputs: list[dict[str, Any]] = json.loads(result.read_text())
    return outputs


def test_committed_without_outputs() -> None:
    notebook = nbformat.read(PATH, as_version=4)
    nbformat.validate(notebook)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.slow
def test_runs_on_an_analysis(tmp_path: Path) -> None:
    make_analysis((4, 2), samples=30).save(tmp_path / "analysis")
    outputs = run(tmp_path / "analysis", tmp_path)
    pictures = [sum("image/png" in shown for shown in cell["displayed"]) for cell in outputs]
    # Two heatmaps; each retrieval against the one before; a Beta fit a stage; the curve; the plan.
    assert pictures == [0, 0, 0, 2, 0, 1, 2, 1, 1]
    tables = [sum("text/html" in shown for shown in cell["displayed"]) for cell in outputs]
    assert [n for n, count in enumerate(tables) if count] == [1, 4, 6]
    # A widget prints the error of its function and goes on.
    assert not any("Traceback" in cell["printed"] for cell in outputs)
    assert (tmp_path / "plans" / "explored.json").is_file()


def test_says_how_to_make_an_analysis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELA_PROBE_ANALYSIS", str(tmp_path / "nowhere"))
    notebook = nbformat.read(PATH, as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    with pytest.raises(SystemExit, match=r"nowhere(.|\n)*make demo"):
        exec(first.source.replace("%matplotlib inline", ""), {})

"""The notebook: committed clean, and it runs from top to bottom on an analysis folder."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from tests.support.synthetic_analyses import make_analysis

ROOT = Path(__file__).resolve().parents[1]
PATH = ROOT / "notebooks" / "01_explore.ipynb"


EXECUTE = """
import sys
import nbformat
from nbclient import NotebookClient

source, result, folder = sys.argv[1:]
notebook = nbformat.read(source, as_version=4)
resources = {"metadata": {"path": folder}}
NotebookClient(notebook, timeout=100, kernel_name="python3", resources=resources).execute()
nbformat.write(notebook, result)
"""


def run(folder: Path, where: Path) -> nbformat.NotebookNode:
    """Execute the notebook from a process of its own.

    On a busy machine the client now and then misses a kernel's answer and sees it only when its
    wait ends: so the wait is short, though long enough for a cold import of torch.
    """
    environment = os.environ | {
        "ELA_PROBE_ANALYSIS": str(folder),
        "PYTHONPATH": str(ROOT),
        "JUPYTER_RUNTIME_DIR": str(where / "runtime"),
        "IPYTHONDIR": str(where / "ipython"),
    }
    result = where / "executed.ipynb"
    words = [sys.executable, "-c", EXECUTE, str(PATH), str(result), str(where)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return nbformat.read(result, as_version=4)  # type: ignore[no-untyped-call]


def test_committed_without_outputs() -> None:
    notebook = nbformat.read(PATH, as_version=4)  # type: ignore[no-untyped-call]
    nbformat.validate(notebook)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


def test_runs_on_an_analysis(tmp_path: Path) -> None:
    make_analysis((4, 2), samples=30).save(tmp_path / "analysis")
    notebook = run(tmp_path / "analysis", tmp_path)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) >= 4  # adjacent, a Beta fit a stage, the curve (and the plan)
    widgets = str(notebook.metadata["widgets"])  # where the heatmaps and their errors would be
    assert widgets.count("image/png") == 2
    assert "Traceback" not in widgets
    assert (tmp_path / "plans" / "explored.json").is_file()


def test_says_how_to_make_an_analysis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELA_PROBE_ANALYSIS", str(tmp_path / "nowhere"))
    notebook = nbformat.read(PATH, as_version=4)  # type: ignore[no-untyped-call]
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    with pytest.raises(SystemExit, match=r"nowhere(.|\n)*make demo"):
        exec(first.source.replace("%matplotlib inline", ""), {})

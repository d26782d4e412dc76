"""`ela-probe notebook`: a copy that knows its analysis, and what is told when it can't be made."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer.main
from ela_probe_cli import main
from ela_probe_cli.app import app

from ela_probe.errors import OptionError
from ela_probe.pipeline import notebook as module
from tests.support.commands import run as command
from tests.support.synthetic_analyses import make_analysis


@pytest.fixture
def analysis(tmp_path: Path) -> Path:
    return make_analysis((3, 2), samples=10).save(tmp_path / 'an "odd" name')


def parameters(path: Path) -> str:
    [cell] = [
        cell
        for cell in json.loads(path.read_text("utf-8"))["cells"]
        if "parameters" in cell["metadata"].get("tags", ())
    ]
    return "".join(cell["source"])


def values(path: Path) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(parameters(path), names)
    return names


def test_the_copy_knows_its_analyses(analysis: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = command(capsys, "notebook", analysis, "--other", analysis)
    path = Path(document["notebook"])
    assert path == analysis.parent / "01_explore.ipynb"
    assert values(path)["analysis_folder"] == str(analysis)
    assert values(path)["other_folder"] == str(analysis)


def test_an_earlier_copy_is_kept(analysis: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = analysis.parent / "mine.ipynb"
    path.write_text("my notes")
    command(capsys, "notebook", analysis, "-o", path)
    assert (analysis.parent / "mine-1.ipynb").read_text() == "my notes"


def test_jupyter_is_started_on_the_copy(
    analysis: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []

    class Done:
        returncode = 3

    monkeypatch.setattr(module, "_is_installed", lambda name: True)

    def start(words: list[str], *, check: bool) -> type[Done]:
        started.append(words)
        return Done

    monkeypatch.setattr("subprocess.run", start)
    assert main(["notebook", str(analysis), "--no-browser"]) == 3
    path = analysis.parent / "01_explore.ipynb"
    assert started[0][1:] == ["-m", "jupyterlab", str(path), "--no-browser"]


def test_without_jupyter_the_extra_is_named_and_nothing_is_written(
    analysis: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_is_installed", lambda name: False)
    line = command(capsys, "notebook", analysis, code=2)
    assert "needs jupyterlab and ipywidgets" in line
    assert "pip install 'ela-probe[notebooks]'" in line
    assert not (analysis.parent / "01_explore.ipynb").exists()
    assert main(["notebook", str(analysis), "--copy"]) == 0
    assert (analysis.parent / "01_explore.ipynb").exists()


def test_every_notebook_can_be_copied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in module.notebook_names():
        command(capsys, "notebook", "--name", name)
        original = (module.NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8")
        assert json.loads((tmp_path / f"{name}.ipynb").read_text("utf-8")) == json.loads(original)


def test_the_help_names_every_notebook() -> None:
    [option] = [
        parameter
        for parameter in typer.main.get_command(app).commands["notebook"].params  # type: ignore[attr-defined]
        if parameter.name == "name"
    ]
    assert all(name in option.help for name in module.notebook_names())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no-such-folder"], "cannot read the analysis no-such-folder"),
        (["--name", "07_more"], "no notebook is called '07_more'; expected one of 01_explore"),
        (["--name", "03_ebqm", "ANALYSIS"], "which makes its own"),
        (["EMPTY"], "there is no analysis in"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(
    words: list[str], message: str, analysis: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "empty").mkdir()
    stands_for = {"ANALYSIS": str(analysis), "EMPTY": str(tmp_path / "empty")}
    given = [stands_for.get(word, word) for word in words]
    assert message in command(capsys, "notebook", *given, "--copy", code=2)


def test_a_parameter_that_the_notebook_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="has no parameter 'folder'"):
        module.copy_notebook("01_explore", tmp_path / "x.ipynb", folder="y")

"""Names in files reach a terminal, a page and a spreadsheet as text, and as nothing else."""

import json
from pathlib import Path

import pandas as pd
import pytest
from rich.text import Text

from cli import console
from cli.entry import LONGEST_ERROR, fail
from ela_probe.analysis.result import Analysis
from ela_probe.errors import AnalysisError
from ela_probe.system.csv_files import csv_text
from ela_probe.system.validation import Strict, explain
from tests.support.planning import analysis_of

HOSTILE = ("\x1b[2J", "\x1b]0;title\x07", "a\x00b", "a\x07", "a\u202eb", "a\ud800b", "a\rb")


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_that_is_printed_commands_the_terminal(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    console.print_line(name)
    console.print_paragraph(name)
    console.print_note(name)
    console.print_table(name, [f"name {name}"], [[name], [Text(name, style="bold")]])
    assert fail(name) == 2
    captured = capsys.readouterr()
    assert all(c.isprintable() for c in (captured.out + captured.err).replace("\n", ""))


@pytest.mark.parametrize("name", HOSTILE)
def test_an_analysis_with_such_a_name_is_refused(tmp_path: Path, name: str) -> None:
    analysis_of([3]).save(tmp_path)
    path = tmp_path / "analysis.json"
    document = json.loads(path.read_text())
    document["stages"][0]["sites"][1]["name"] = name
    path.write_text(json.dumps(document))
    with pytest.raises(AnalysisError, match="can't be printed|is damaged") as caught:
        Analysis.load(tmp_path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("value", [[], {}, None, 3])
def test_an_analysis_whose_names_are_no_text_is_refused(tmp_path: Path, value: object) -> None:
    analysis_of([3]).save(tmp_path)
    path = tmp_path / "analysis.json"
    document = json.loads(path.read_text())
    document["stages"][0]["sites"][1]["name"] = value
    path.write_text(json.dumps(document))
    with pytest.raises(AnalysisError, match="is damaged"):
        Analysis.load(tmp_path)


def test_text_in_a_table_is_no_formula() -> None:
    table = pd.DataFrame({"site": ["=1+1", "@x", "+a", "a=b"], "kl": [-1.0, 0.5, 2.0, 3.0]})
    lines = csv_text(table).splitlines()
    assert lines == ["site,kl", "'=1+1,-1.0", "'@x,0.5", "'+a,2.0", "a=b,3.0"]


class Note(Strict):
    """A document of one field."""

    text: int


def test_what_is_quoted_of_a_file_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    from pydantic import ValidationError

    for document in ({"x" * 5000: 1}, {"text": "y" * 5000}):
        with pytest.raises(ValidationError) as caught:
            Note.model_validate(document)
        assert len(explain(caught.value, Note)) < 400
    with pytest.raises(ValidationError) as caught:
        Note.model_validate({f"name{i}": 1 for i in range(1000)})
    assert "and 981 more" in explain(caught.value, Note, limit=None)
    fail("z" * 10**6)
    assert len(capsys.readouterr().err) < LONGEST_ERROR + 20

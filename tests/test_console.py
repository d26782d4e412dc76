"""Text on its way to a terminal: verbatim, in any encoding, with no digit cut off."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ela_probe_cli import console
from ela_probe_cli.encoding import transliterate
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from tests.support.commands import VERBS

AWKWARD = ["run[v2]/p.pt", "an[/x]", "[bold]a[/bold]", "[/]", ":smile:", "a  b", r"\[x]"]


@pytest.mark.parametrize("text", AWKWARD)
def test_user_text_is_printed_verbatim(
    text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    console.print_line(f"written to {text}")
    console.print_paragraph(text)
    console.print_table(text, (text, ">b"), [(text, 1.0), (Text(text, style="red"), 2)])
    console.print_note(text)
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == f"written to {text}"
    assert out.count(text) == 6
    assert err == f"{text}\n"


def test_a_long_path_stays_on_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    path = "/".join(["folder"] * 30)
    console.print_line(f"written to {path}")
    assert capsys.readouterr().out == f"written to {path}\n"


ROWS = st.lists(st.lists(st.integers(10**3, 10**12).map(str), min_size=7, max_size=7), min_size=1)


@given(cells=ROWS, width=st.integers(1, 120))
def test_no_cell_is_cut_at_any_width(cells: list[list[str]], width: int) -> None:
    columns = ["site", *(f">column{i}" for i in range(6))]
    out = io.StringIO()
    os.environ["COLUMNS"] = str(width)
    try:
        with contextlib.redirect_stdout(out):
            console.print_table("", columns, cells)
    finally:
        del os.environ["COLUMNS"]
    text = out.getvalue()
    words = text.split()
    assert "…" not in text
    assert all(cell in words for row in cells for cell in row)
    assert all(column.lstrip(">") in words for column in columns)
    widest = max(len(line.rstrip()) for line in text.splitlines())
    two_columns = max(len(word) for line in [*cells, columns] for word in line) * 2 + 7
    assert widest <= max(width, two_columns)


def test_columns_that_do_not_fit_follow_below(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "32")
    console.print_table("t", ("site", ">a", ">b", ">c"), [("one", "1" * 9, "2" * 9, "3" * 9)])
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.split()]
    assert [line for line in lines if line[0] == "site"] == [["site", "a", "b"], ["site", "c"]]
    assert [line for line in lines if line[0] == "one"] == [
        ["one", "1" * 9, "2" * 9], ["one", "3" * 9],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("character", "spelled"),
    [
        ("κ", "kappa"),
        ("Δ", "Delta"),
        ("→", "->"),
        ("é", "e"),
        ("╭", "+"),
        ("\udcff", r"\xff"),
        ("漢", "?"),
    ],
)
def test_characters_have_a_spelling(character: str, spelled: str) -> None:
    assert transliterate(character) == spelled


@given(st.characters())
def test_every_character_has_one_in_ascii(character: str) -> None:
    assert transliterate(character).isascii()
    assert transliterate(character)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1", "utf-8"])
def test_every_help_text_is_readable_in_any_encoding(encoding: str) -> None:
    code = (
        "from ela_probe_cli import main, console\n"
        f"for verb in {VERBS!r}: assert main([verb, '--help']) == 0\n"
        "console.print_line('κ of 3 → 4')\n"
        "console.print_table('±', ('κ', '>ρ'), [('run[v2]', 0.5)])\n"
        "raise SystemExit(main(['plan', 'κ\\udcff']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
        capture_output=True,
        check=False,
    )
    out, err = done.stdout.decode(encoding), done.stderr.decode(encoding)
    assert done.returncode == 2, err
    assert "Traceback" not in err
    assert ("κ of 3 → 4" if encoding == "utf-8" else "kappa of 3 -> 4") in out
    assert "run[v2]" in out
    assert r"\xff" in err
    assert len(err.splitlines()) == 1


def test_a_report_of_a_folder_with_brackets_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ela_probe_cli import main

    folder = tmp_path / "an[/x] [v2]"
    folder.mkdir(parents=True)  # the name has a slash in it
    assert main(["report", str(folder)]) == 2
    assert str(folder) in capsys.readouterr().err

"""The rule for outputs: no input is replaced, and what exists is kept under a number."""

import os
from pathlib import Path

import pytest

from ela_probe.errors import OutputError
from ela_probe.system.outputs import keep_file, keep_folder, refuse_inputs
from ela_probe.system.storage import write_text


def names(folder: Path) -> dict[str, str]:
    """Every file below a folder, and its text."""
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_every_earlier_file_keeps_its_content(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    for text in "abcd":
        with keep_file(path):
            write_text(path, text)
    assert names(tmp_path) == {
        "plan.json": "d", "plan-1.json": "a", "plan-2.json": "b", "plan-3.json": "c",
    }  # fmt: skip


def test_the_same_content_is_kept_once(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    for _ in range(3):
        with keep_file(path) as kept:
            write_text(path, "a")
        assert kept.path is None
    assert names(tmp_path) == {"plan.json": "a"}


def test_an_error_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = write_text(tmp_path / "plan.json", "a")
    with pytest.raises(KeyError), keep_file(path):
        raise KeyError
    assert names(tmp_path) == {"plan.json": "a"}
    with pytest.raises(KeyError), keep_file(path):
        write_text(path, "b")
        raise KeyError
    assert names(tmp_path) == {"plan.json": "b", "plan-1.json": "a"}


def test_without_links_the_file_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    path = write_text(tmp_path / "a.pt", "a")
    write_text(tmp_path / "a-1.pt", "other")
    with keep_file(path) as kept:
        write_text(path, "b")
    assert kept.path == tmp_path / "a-2.pt"
    assert names(tmp_path) == {"a.pt": "b", "a-1.pt": "other", "a-2.pt": "a"}


def test_a_folder_in_the_way_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="expected a file to write"), keep_file(tmp_path):
        pass


def test_the_earlier_results_of_a_folder_move_together(tmp_path: Path) -> None:
    folder = tmp_path / "analysis"
    for run in "abc":
        with keep_folder(folder, ("x.json", "figures")):
            write_text(folder / "x.json", run)
            write_text(folder / "figures" / "y.png", run)
        write_text(folder / "notes.txt", "mine")
    assert names(tmp_path) == {
        "analysis/x.json": "c", "analysis/figures/y.png": "c", "analysis/notes.txt": "mine",
        "analysis-1/x.json": "a", "analysis-1/figures/y.png": "a",
        "analysis-2/x.json": "b", "analysis-2/figures/y.png": "b",
    }  # fmt: skip


def test_after_an_error_the_earlier_results_are_back(tmp_path: Path) -> None:
    folder = tmp_path / "analysis"
    write_text(folder / "x.json", "a")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(KeyError), keep_folder(folder, ("x.json",)) as kept:
        raise KeyError
    assert kept.path is None
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(KeyboardInterrupt), keep_folder(folder, ("x.json",)) as kept:
        write_text(folder / "x.json", "b")
        raise KeyboardInterrupt
    assert kept.path == tmp_path / "analysis-1"
    assert names(tmp_path) == {"analysis/x.json": "b", "analysis-1/x.json": "a"}


def test_the_current_folder_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_text("x.json", "a")
    with keep_folder(Path("."), ("x.json",)) as kept:
        write_text("x.json", "b")
    assert kept.path == Path("../here-1")
    assert names(tmp_path) == {"here/x.json": "b", "here-1/x.json": "a"}


@pytest.mark.parametrize("way", ["itself", "relative", "symlink", "hard link", "folder link", "up"])
def test_an_input_by_any_name_is_refused(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    best = write_text(folder / "best.pt", "a")
    monkeypatch.chdir(folder)
    (tmp_path / "link.pt").symlink_to(best)
    os.link(best, tmp_path / "hard.pt")
    (tmp_path / "linked").symlink_to(folder)
    output = {
        "itself": best,
        "relative": Path("best.pt"),
        "symlink": tmp_path / "link.pt",
        "hard link": tmp_path / "hard.pt",
        "folder link": tmp_path / "linked" / "best.pt",
        "up": Path("../run/best.pt"),
    }[way]
    with pytest.raises(OutputError, match="choose another name with -o"):
        refuse_inputs([tmp_path / "other.pt", output], [None, best])
    refuse_inputs([tmp_path / "other.pt"], [None, best])

"""Outputs that are no regular files, and what killed processes leave behind."""

import os
from pathlib import Path

import pytest

from ela_probe.errors import OutputError
from ela_probe.system.outputs import keep_file, refuse_folder
from ela_probe.system.storage import ABANDONED_SECONDS, replacing_folder, write_text


def test_a_pipe_is_neither_replaced_nor_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for attempt in (refuse_folder, lambda path: write_text(path, "a")):
        with pytest.raises(OutputError, match="it is a pipe or a device; expected the name of a"):
            attempt(pipe)
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_device_is_not_replaced() -> None:
    with pytest.raises(OutputError, match="it is a pipe or a device"):
        write_text("/dev/null", "a")


def test_the_file_that_a_link_leads_to_is_replaced_and_the_earlier_one_is_kept(
    tmp_path: Path,
) -> None:
    target, link = tmp_path / "folder" / "target.json", tmp_path / "link.json"
    write_text(target, "a")
    link.symlink_to(target)
    with keep_file(link) as kept:
        write_text(link, "b")
    assert link.is_symlink()
    assert target.read_text() == "b"
    assert kept.path == tmp_path / "link-1.json"
    assert not kept.path.is_symlink()
    assert kept.path.read_text() == "a"


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1"])
def test_the_standard_output_is_written_to(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with keep_file(Path(name)) as kept:
        write_text(name, "a\n")
    assert capsys.readouterr().out == "a\n"
    assert kept.path is None


def age(path: Path, seconds: float) -> None:
    os.utime(path, (path.stat().st_mtime - seconds,) * 2)


def test_what_a_killed_process_left_is_removed_and_what_is_being_written_is_not(
    tmp_path: Path,
) -> None:
    names = (".a.json.abcd1234.tmp", ".a.json.efgh5678.tmp", ".b.json.abcd1234.tmp", ".a.json.tmp")
    for name in names:
        (tmp_path / name).write_text("half")
        if name != names[1]:
            age(tmp_path / name, 2 * ABANDONED_SECONDS)
    write_text(tmp_path / "a.json", "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", *names[1:]}


def test_a_folder_that_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    left, fresh = tmp_path / ".model.abcd1234.tmp", tmp_path / ".model.efgh5678.tmp"
    for folder in (left, fresh):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        age(folder, 2 * ABANDONED_SECONDS)
    age(left / "config.json", 2 * ABANDONED_SECONDS)
    with replacing_folder(tmp_path / "model") as temporary:
        (temporary / "config.json").write_text("{}")
    assert {path.name for path in tmp_path.iterdir()} == {"model", fresh.name}

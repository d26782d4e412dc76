"""The command for a GPU: its parts are commands that exist, and a second call goes on."""

import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.cases import gpu
from benchmarks.cases.gpu import FULL, SMALL, Part

SOURCES = {"cifar10": "npz:ten", "cifar100": "npz:hundred"}


def parts(folder: Path, size: gpu.Size, data: dict[str, str] | None = None) -> list[Part]:
    return gpu.parts(
        size, folder, SOURCES if data is None else data, epochs=3, compiled=True,
        references=[folder / "KCLA"], device="cpu",
    )  # fmt: skip


@pytest.mark.parametrize("size", [FULL, SMALL], ids=["full", "small"])
def test_every_part_is_a_command_with_options_that_exist(tmp_path: Path, size: gpu.Size) -> None:
    commands: Any = typer.main.get_command(app)
    found = parts(tmp_path, size)
    assert len({part.name for part in found}) == len(found)
    for part in found:
        for words in (part.words, part.so_far or part.words):
            command = commands.commands[words[0]]
            with command.make_context(words[0], [*words[1:], "--json", "x"]) as context:
                assert context.params["device"] == "cpu"


def test_without_images_nothing_is_trained(tmp_path: Path) -> None:
    assert all(part.words[0] not in ("methods", "plans") for part in parts(tmp_path, FULL, {}))


def test_a_finished_part_is_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "beta.json").write_text("{}")
    row = gpu.carried_out(Part("beta", ("no-such-command",)), tmp_path, time.monotonic())
    assert (row["done"], row["outcome"]) == (True, "done before")


def test_a_part_without_time_does_not_start(tmp_path: Path) -> None:
    row = gpu.carried_out(Part("beta", ("beta",)), tmp_path, time.monotonic() + 1)
    assert not row["done"]
    assert row["outcome"].startswith("not started")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "done", "outcome"),
    [
        (("beta", "--values", "2000", "--batch", "100", "--rounds", "1"), True, "done"),
        (("speed", "--network", "resnet7"), False, "failed with exit code 2: .*resnet20.*"),
    ],
)
def test_a_part_is_done_when_its_result_is_there(
    tmp_path: Path, words: tuple[str, ...], done: bool, outcome: str
) -> None:
    row = gpu.carried_out(Part("part", words), tmp_path, time.monotonic() + 3600)
    assert row["done"] == done == (tmp_path / "part.json").is_file()
    assert re.fullmatch(outcome, row["outcome"]), row["outcome"]
    assert str(tmp_path) not in row["outcome"]


def test_a_command_out_of_time_ends_with_all_its_processes(tmp_path: Path) -> None:
    child = "import time; time.sleep(600)"
    command = [
        sys.executable, "-c",
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])",
    ]  # fmt: skip
    with (tmp_path / "log").open("a") as log:
        assert gpu.code_within(1.0, command, log) is None


def test_a_call_without_time_says_what_it_left_out(tmp_path: Path) -> None:
    words = ["gpu", "--minutes", "0.1", "--small", "--device", "cpu", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1, result.output
    assert "not started: no time remains" in result.stdout
    assert (tmp_path / "gpu.json").is_file()

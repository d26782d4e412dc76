"""The folder of a run is whole or refused; what else can end a run gets one line."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ela_probe_cli import main
from ela_probe_cli.failures import explained

from ela_probe.checkpoint import read_checkpoint
from ela_probe.data import batches
from ela_probe.errors import OutputError
from ela_probe.pruning.plan import SkipPlan
from ela_probe.system.folder_lock import only_writer
from ela_probe.training.run_folder import BEST, LAST, NEXT, RESUME
from tests.support.commands import run
from tests.support.image_sets import write_images

CPU = ["--batch-size", "30", "--device", "cpu"]
TRAIN = ["train", "--model", "mrla_b_resnet14", "--val-fraction", "0.2", *CPU]
ELA_OPTION = ["--ela", "skip=0.3,warmup=1,ramp=1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, and in `run` a run with ELA of three epochs on it."""
    folder = tmp_path_factory.mktemp("finished")
    data = f"npz:{write_images(folder / 'set', size=8)}"
    words = [*TRAIN, "--data", data, "--epochs", "3", *ELA_OPTION, "-o", str(folder / "run")]
    assert main(words) == 0
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def words_of(folder: Path, epochs: int = 3) -> list[str]:
    return [
        *TRAIN, "--data", f"npz:{folder / 'set'}", "--epochs", str(epochs), *ELA_OPTION, "-o",
        str(folder / "run"), "--resume",
    ]  # fmt: skip


@pytest.mark.parametrize("name", [BEST, LAST])
@pytest.mark.parametrize("change", ["missing", "other"])
def test_weights_of_another_state_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, change: str
) -> None:
    path = folder / "run" / name
    path.unlink()
    if change == "other":
        path.write_bytes(b"another file")
    line = run(capsys, *words_of(folder), code=2)
    assert f"the run in {folder / 'run'} is not whole: {name} is" in line
    assert "--resume" in line


def test_weights_that_wait_for_their_name_get_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a kill between `resume.ckpt` and `best.pt`."""
    path, other = folder / "run" / BEST, folder / "run" / LAST
    content = path.read_bytes()
    path.rename(path.with_name(f"{NEXT}{BEST}"))
    shutil.copy(other, path)
    run(capsys, *words_of(folder))
    assert path.read_bytes() == content
    assert not list((folder / "run").glob(f"{NEXT}*"))


def test_what_a_lost_epoch_wrote_is_replaced(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a kill before `resume.ckpt`: its weights, its row of the log and its plan."""
    here = folder / "run"
    files = ("metrics.csv", "ela.csv", "plan.json", BEST, LAST)
    before = {name: (here / name).read_bytes() for name in files}
    (here / f"{NEXT}{BEST}").write_bytes(b"of an epoch that was lost")
    for name in ("metrics.csv", "ela.csv"):
        (here / name).write_text((here / name).read_text() + "4\n")
    plan = SkipPlan.load(here / "plan.json")
    plan.model_copy(update={"origin": plan.origin.model_copy(update={"seed": 9})}).save(
        here / "plan.json"
    )
    run(capsys, *words_of(folder))
    assert {name: (here / name).read_bytes() for name in files} == before
    assert not list(here.glob(f"{NEXT}*"))


def test_a_state_without_digests_is_resumed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "run" / RESUME
    state = torch.load(path, weights_only=True)
    del state["callbacks"]["ela_probe.History"]["sha256"]
    torch.save(state, path)
    (folder / "run" / LAST).unlink()
    run(capsys, *words_of(folder, epochs=4))
    assert read_checkpoint(folder / "run" / LAST).header.metrics["epoch"] == 4


def test_labels_that_changed_meanwhile_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "set-train.npz"
    arrays = dict(np.load(path))
    arrays["labels"] = np.roll(arrays["labels"], 3)
    arrays["labels"][:2] = arrays["labels"][1::-1]
    np.savez(path, **arrays)
    line = run(capsys, *words_of(folder, epochs=4), code=2)
    assert "labels (SHA-256)" in line


HOLD = """
import sys
from pathlib import Path
from ela_probe.system.folder_lock import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_processes_do_not_write_one_folder(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    refused = pytest.raises(OutputError, match="another process is writing into")
    with refused, only_writer(tmp_path, patience=0):
        pass
    with only_writer(tmp_path.parent, patience=0):  # another folder
        pass
    other.kill()
    other.communicate()
    with only_writer(tmp_path):
        pass
    with only_writer(tmp_path, patience=0):  # it ends with its block
        pass


def test_a_worker_that_dies_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def killed(self: Any, index: Any) -> Any:
        assert torch.utils.data.get_worker_info() is not None
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(batches.ImageDataset, "__getitem__", killed)
    words = [*TRAIN, "--data", f"npz:{folder / 'set'}", "--epochs", "1", "--workers", "1"]
    assert main([*words, "-o", str(folder / "new")]) == 2
    text = capfd.readouterr().err
    assert "Traceback" not in text
    assert text.splitlines()[-1].startswith("error: a process that loads batches ended")
    assert "--workers" in text
    assert not (folder / "new").exists()


@pytest.mark.parametrize("library", ["torch", "numpy"])
def test_a_batch_that_memory_does_not_hold_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], library: str
) -> None:
    def large(self: Any, index: Any) -> Any:
        return torch.empty(2**50) if library == "torch" else np.empty(2**50)

    monkeypatch.setattr(batches.ImageDataset, "__getitem__", large)
    best = folder / "run" / BEST
    line = run(capsys, "analyze", best, "-o", folder / "an", *CPU, code=2)
    assert "out of memory" in line
    assert "--batch-size" in line
    assert not (folder / "an").exists()


def test_other_errors_are_not_taken_for_these() -> None:
    assert explained(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert explained(ValueError("out of memory of what happened")) is None
    assert explained(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")) is not None


def test_the_handler_of_sigterm_is_put_back() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        assert main(["models"]) == 0
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)

"""Several processes: what each reads, that together they compute what one would, who is told."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ela_probe_cli import main
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DistributedSampler

from ela_probe import Analysis, create_model
from ela_probe.analysis.analyze import analyze
from ela_probe.checkpoint import read_checkpoint
from ela_probe.data.batches import SeededBatches, Share
from ela_probe.data.opening import open_data
from ela_probe.errors import DataError, OptionError
from ela_probe.pipeline.analyze import analyze_checkpoint
from ela_probe.system.processes import (
    Processes,
    all_gather,
    broadcast,
    is_first,
    raise_together,
)
from ela_probe.training.trainer import fit
from tests.support.commands import run as command
from tests.support.identities import assert_same
from tests.support.image_sets import write_images
from tests.support.networks import without_norms
from tests.support.training import batches, equal_runs, train_command
from tests.support.two_processes import EXACT, SAMPLINGS

# What each reads


@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 5), st.booleans())
def test_parts_of_every_batch_hold_every_sample_once(
    samples: int, size: int, count: int, shuffle: bool
) -> None:
    if min(samples, size) < count:
        with pytest.raises(DataError, match=f"too few for {count} processes"):
            SeededBatches(samples, batch_size=size, shuffle=shuffle, seed=3, share=Share(0, count))
        return
    shares = [
        SeededBatches(samples, batch_size=size, shuffle=shuffle, seed=3, share=Share(rank, count))
        for rank in range(count)
    ]
    read = [list(share) for share in shares]
    assert {len(part) for part in read} == {len(share) for share in shares} == {len(read[0])}
    for parts in zip(*read, strict=True):
        lengths = [len(part.positions) for part in parts]
        assert min(lengths) > 0
        assert max(lengths) - min(lengths) <= 1
        assert len({part.seed for part in parts}) == count
    everything = torch.cat([part.positions for parts in read for part in parts])
    assert sorted(everything.tolist()) == list(range(samples))


@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 5), st.integers(1, 4))
def test_whole_batches_in_turn_are_those_of_one_process(
    samples: int, size: int, count: int, turn: int
) -> None:
    def those(share: Share) -> list[tuple[list[int], int]]:
        drawn = SeededBatches(samples, batch_size=size, shuffle=True, seed=3, share=share)
        found = [(batch.positions.tolist(), batch.seed) for batch in drawn]
        assert len(found) == len(drawn)
        return found

    alone = those(Share())
    dealt = [those(Share(rank, count, turn)) for rank in range(count)]
    for rank, found in enumerate(dealt):
        own = [k for k in range(len(alone)) if k // turn % count == rank]
        assert found == [alone[k] for k in own]
    turns = -(-len(alone) // turn)
    assert sum(Share(rank, count, turn).turns(turns) for rank in range(count)) == turns


def test_a_sampler_that_repeats_samples_is_refused() -> None:
    loader = batches()
    sampler: DistributedSampler[Any] = DistributedSampler(loader.dataset, num_replicas=3, rank=0)
    repeating = torch.utils.data.DataLoader(loader.dataset, 8, sampler=sampler)
    with pytest.raises(DataError, match="repeats 1 samples"):
        analyze(create_model("mrla_b_resnet14", num_classes=3), repeating)


# Who starts them


def test_alone_nothing_waits() -> None:
    assert Processes.from_options(device="cpu") == Processes()
    assert Processes().launch(torch.device("cpu")) == torch.device("cpu")
    assert is_first()
    assert broadcast([1]) == [1]
    assert all_gather("a") == ["a"]
    with pytest.raises(DataError, match="no data"), raise_together():
        raise DataError("no data")


LAUNCHERS: dict[str, dict[str, str]] = {
    "torchrun": {
        "TORCHELASTIC_RUN_ID": "1", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "4", "RANK": "1"
    },
    "SLURM": {
        "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "2",
        "SLURM_JOB_NAME": "train",
    },
}  # fmt: skip


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_says_how_many(launcher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LAUNCHERS[launcher].items():
        monkeypatch.setenv(name, value)
    assert Processes.from_options(device="cpu") == Processes(2, 2)
    assert Processes.from_options(2, 2, "fsdp", device="cpu") == Processes(2, 2, "fsdp")
    with pytest.raises(OptionError, match=f"got --devices 3, but {launcher} started 2"):
        Processes.from_options(3, device="cpu")
    with pytest.raises(OptionError, match=f"got --num-nodes 1, but {launcher} started 2"):
        Processes.from_options(2, 1, device="cpu")


def test_slurm_tasks_that_lightning_cannot_use_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "4")
    with pytest.raises(OptionError, match="--ntasks-per-node=4"):
        Processes.from_options(device="cpu")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--strategy", "fsdp"],
            "divides the parameters among processes, and there is only one: add",
        ),
        (
            ["--num-nodes", "2"],
            "--num-nodes 2 needs a launcher: start the command with torchrun or srun",
        ),
        (["--devices", "9", "--batch-size", "8"], "too few for 9 processes"),
        (["--devices", "2", "--precision", "16-mixed"], "16-mixed needs a GPU"),
    ],
)
def test_what_cannot_be_is_told_before_any_process_starts(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["train", "--model", "mrla_b_resnet14", "--data", "digits", "--device", "cpu"]
    assert message in command(capsys, *train, "-o", tmp_path / "run", *words, code=2)


# What they do together

COMMAND = Path(sys.executable).with_name("ela-probe")  # Lightning starts others by its path


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


# A hang ends here. A run takes seconds, and on a machine with many others some minutes.
HOUR = 3600


def run_command(words: Sequence[str | Path]) -> "subprocess.CompletedProcess[str]":
    """The command in a process of its own, which starts the others."""
    return subprocess.run(
        [sys.executable, COMMAND, *words],
        env=environment(), capture_output=True, text=True, timeout=HOUR, check=False,
    )  # fmt: skip


def started(
    words: Sequence[str], *, second: Sequence[str | Path] = (COMMAND,), **more: str
) -> list["subprocess.Popen[str]"]:
    """The command as two processes that the test started itself, as a launcher does.

    Args:
        second: what Python runs in the second process.
    """
    ranks = ("LOCAL_RANK", "SLURM_PROCID", "SLURM_LOCALID")
    return [
        subprocess.Popen(
            [sys.executable, *program, *words],
            env=environment(**more, **dict.fromkeys(ranks, str(number))),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, program in enumerate(((COMMAND,), second))
    ]


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "set", size=8)


@pytest.fixture(scope="module")
def two(prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder in which two processes did it all, and what they found."""
    folder = tmp_path_factory.mktemp("two")
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *words, "-m", "tests.support.two_processes", str(folder), str(prefix)],
        env=environment(), capture_output=True, text=True, timeout=HOUR, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, json.loads((folder / "found.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("how", ["skip", "drop", "affine", "stochastic"])
def test_ela_in_anyones_trainer_under_ddp(two: tuple[Path, dict[str, Any]], how: str) -> None:
    found = two[1]["anyones"][how]
    assert found["same plan"]
    assert found["same weights"]
    assert found["own batches"]
    assert found["optimizer follows"]
    assert found["samples"] == 32  # four batches of 8, two a process, all probed
    final = [9, 9, 9, 5, 5] if how == "stochastic" else [9, 7, 5, 5, 5]
    assert found["sites"] == final


@pytest.mark.slow
def test_two_train_as_one_does(
    two: tuple[Path, dict[str, Any]], prefix: Path, tmp_path: Path
) -> None:
    folder, found = two
    data = open_data(f"npz:{prefix}", val_fraction=0.2, augment="none")
    model = without_norms()
    alone = fit(
        model, data, EXACT, output=tmp_path, save=lambda *_: None, device="cpu", progress=False
    )
    together = torch.load(folder / "alone" / "last.pt", weights_only=True)
    for name, value in model.state_dict().items():
        assert_same(together[name], value)
    for ours, theirs in zip(found["alone"]["history"], alone.history, strict=True):
        for name in ("train_loss", "val_loss", "val_accuracy"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5)  # sums of float32


@pytest.mark.slow
def test_an_interrupted_run_of_two_goes_on_as_if_it_had_not_been(
    two: tuple[Path, dict[str, Any]],
) -> None:
    folder, found = two
    assert "interrupted after epoch 3 of 5" in found["interrupted"]["told"]
    assert equal_runs(folder / "whole", folder / "cut")


@pytest.mark.slow
def test_a_pruned_network_trains_under_ddp_and_fsdp(two: tuple[Path, dict[str, Any]]) -> None:
    folder, found = two
    assert len(found["skipped"]) == 3
    assert found["tuned"]["fsdp"] == pytest.approx(found["tuned"]["ddp"], rel=1e-5)
    assert found["tuned"]["resumed"] == found["tuned"]["fsdp"]
    assert found["tuned"]["ddp"][1] < found["tuned"]["ddp"][0]
    one, other = (read_checkpoint(folder / f"{name}.pt") for name in ("ddp", "fsdp"))
    assert one.header.plans == other.header.plans != ()
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(other.model.state_dict()[name], value, rtol=1e-4, atol=1e-5)


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def checkpoint(prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    words = ["train", "--model", "mrla_b_resnet14", "--data", f"npz:{prefix}", "--epochs", "1"]
    assert main([*words, "--lr", "0.05", "--device", "cpu", "-o", str(folder)]) == 0
    return folder / "last.pt"


def same_analysis(one: Path, other: Path) -> bool:
    first, second = Analysis.load(one), Analysis.load(other)
    arrays = [np.load(folder / "arrays.npz") for folder in (one, other)]
    assert first.provenance.samples == second.provenance.samples
    assert first.provenance.accuracy == second.provenance.accuracy
    assert first.provenance.loss == pytest.approx(second.provenance.loss, rel=1e-12)
    return set(arrays[0]) == set(arrays[1]) and all(
        np.array_equal(arrays[0][name], arrays[1][name], equal_nan=True) for name in arrays[0]
    )


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_two_processes_analyse_as_one_does(checkpoint: Path, tmp_path: Path) -> None:
    """Seven batches for two processes: one has one more, and no sample counts twice."""
    words = ["analyze", str(checkpoint), "--device", "cpu", "--no-figures", "--batch-size", "8"]
    assert main([*words, "-o", str(tmp_path / "one")]) == 0
    done = run_command([*words, "--devices", "2", "-o", tmp_path / "two", "--json"])
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["directory"] == str(tmp_path / "two")  # printed once
    assert same_analysis(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_two_processes_record_the_batches_that_one_would(
    two: tuple[Path, dict[str, Any]], tmp_path: Path, sampling: str
) -> None:
    folder, _ = two
    checkpoint = read_checkpoint(folder / "whole" / "last.pt")
    alone = analyze_checkpoint(checkpoint, device="cpu", progress=False, **SAMPLINGS[sampling])
    assert same_analysis(alone.save(tmp_path / "one"), folder / f"analysis-{sampling}")


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_slurm_starts_them(checkpoint: Path, tmp_path: Path, unused_port: int) -> None:
    words = ["analyze", str(checkpoint), "--device", "cpu", "--no-figures", "--batch-size", "8"]
    assert main([*words, "-o", str(tmp_path / "one")]) == 0
    slurm = {
        "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1",
        "SLURM_JOB_NAME": "analysis", "SLURM_NODELIST": "127.0.0.1", "SLURM_NODEID": "0",
        "MASTER_PORT": str(unused_port),
    }  # fmt: skip
    tasks = started([*words, "-o", str(tmp_path / "two")], **slurm)
    out = [task.communicate(timeout=HOUR) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], out
    assert "written to" in out[0][0]
    assert out[1][0] == ""
    assert same_analysis(tmp_path / "one", tmp_path / "two")


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.slow
def test_the_error_of_one_process_ends_all_with_one_line_each(
    checkpoint: Path, tmp_path: Path
) -> None:
    """Three processes for two batches: the third has none, and nobody waits for it."""
    (tmp_path / "pairs.py").write_text(
        "import torch\ndef two():\n    return [torch.randn(4, 3, 8, 8) for _ in range(2)]\n"
    )
    words = ["analyze", str(checkpoint), "--device", "cpu", "--no-figures", "--devices", "3"]
    words += ["--example-inputs", "pairs:two", "--path", str(tmp_path)]
    done = run_command([*words, "-o", tmp_path / "three"])
    assert done.returncode == 2
    assert "there is no batch for process 3 of 3" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "three").exists()


@pytest.mark.parametrize("words", [[], ["--every", "4"], ["--max-batches", "1"]])
def test_too_few_batches_are_told_before_any_process_starts(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    few = ["--limit", "16", "--batch-size", "8", "--devices", "3", "--device", "cpu"]
    line = command(capsys, "analyze", checkpoint, *few, *words, code=2)
    assert "too few for 3 processes" in line
    assert not checkpoint.with_name("last-analysis").exists()


@pytest.mark.slow
def test_a_run_of_two_of_which_one_is_killed_ends_and_goes_on(
    two: tuple[Path, dict[str, Any]], prefix: Path, tmp_path: Path, unused_port: int
) -> None:
    """With the settings of `trained`, whose uninterrupted run of two is compared."""
    words = [*train_command(prefix, tmp_path), "--devices", "2"]
    first, second = started(
        words, second=("-m", "tests.support.killed_run", "batch:2:1"),
        MASTER_PORT=str(unused_port), WORLD_SIZE="2", NODE_RANK="0",
    )  # fmt: skip
    _, err = first.communicate(timeout=HOUR)
    assert second.wait(timeout=HOUR) == -signal.SIGKILL
    assert first.returncode == 2, err
    assert err.splitlines()[-1].startswith(
        "error: process 1 of 2 stops, because another process ended"
    )
    assert "Traceback" not in err
    again = run_command([*words, "--resume"])
    assert again.returncode == 0, again.stderr
    assert equal_runs(tmp_path, two[0] / "whole")

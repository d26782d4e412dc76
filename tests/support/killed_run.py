"""A command whose process kills itself: `python -m tests.support.killed_run WHEN WORDS...`.

WHEN is `write:NAME:N`, as the process is about to rename its N-th file NAME into place (the
temporary file is written, and nothing has been cleaned up), or `batch:EPOCH:N`, after the N-th
batch of an epoch, both counted from 0. SIGKILL leaves no chance to tidy up.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytorch_lightning as pl
from ela_probe_cli import main

from ela_probe.pipeline import train as verb
from ela_probe.training.trainer import fit


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_write(name: str, number: int) -> None:
    """From now on, rename `number` (from 0) to a file called `name` kills this process."""
    replace, written = os.replace, 0

    def counting(source: Any, target: Any, **options: Any) -> None:
        nonlocal written
        if Path(target).name == name:
            if written == number:
                kill()
            written += 1
        replace(source, target, **options)

    mock.patch.object(os, "replace", counting).start()


class KillAt(pl.Callback):
    def __init__(self, epoch: int, batch: int) -> None:
        self.when = epoch, batch

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (trainer.current_epoch, batch_idx) == self.when:
            kill()


def kill_at_batch(epoch: int, batch: int) -> None:
    """From now on, a training run is killed after this batch."""

    def cut(*arguments: Any, callbacks: list[pl.Callback], **options: Any) -> Any:
        return fit(*arguments, callbacks=[*callbacks, KillAt(epoch, batch)], **options)

    mock.patch.object(verb, "fit", cut).start()


if __name__ == "__main__":
    event, first, second = sys.argv[1].split(":")
    if event == "write":
        kill_at_write(first, int(second))
    else:
        kill_at_batch(int(first), int(second))
    sys.exit(main(sys.argv[2:]))

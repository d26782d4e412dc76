"""The display of a training run on stderr: a progress bar on a terminal, else a line per epoch."""

import sys
from typing import Any

import pytorch_lightning as pl
from rich.progress import Progress

from ela_probe.system.progress import bar
from ela_probe.training.record import History


class EpochDisplay(pl.Callback):
    """A progress bar over the steps of each epoch, and one line at its end."""

    def __init__(self, history: History) -> None:
        self.history = history
        self._bar: Progress | None = None
        self._task: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the progress bar."""
        self._bar = bar()
        self._task = self._bar.add_task("training", total=trainer.num_training_batches)
        self._bar.start()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reset the progress bar."""
        if self._bar is not None:
            title = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            self._bar.reset(self._task, description=title, total=trainer.num_training_batches)

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        """Advance the progress bar by a step."""
        if self._bar is not None and not self._bar.disable:
            self._bar.advance(self._task)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the results of the epoch."""
        line = _line(self.history.rows[-1], epochs=trainer.max_epochs)
        if self._bar is not None and not self._bar.disable:
            self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Remove the progress bar, also after an error."""
        self._stop()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Remove the progress bar."""
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _line(row: dict[str, float], *, epochs: int | None) -> str:
    parts = [
        f"epoch {row['epoch']:.0f}/{epochs}",
        f"loss {row['train_loss']:.3f}",
    ]
    if "train_accuracy" in row:
        parts.append(f"accuracy {row['train_accuracy']:.1%}")
    if "val_accuracy" in row:
        parts.append(f"validation: loss {row['val_loss']:.3f}, accuracy {row['val_accuracy']:.1%}")
    elif "val_ap" in row:
        parts.append(f"validation: loss {row['val_loss']:.3f}, AP {row['val_ap']:.1%}")
    if "val_box_ap50" in row:
        parts.append(f"AP50 {row['val_box_ap50']:.1%}")
    if "skipped" in row:
        parts.append(f"skipped {row['skipped']:.0%}")
    parts.append(f"{row['seconds']:.1f} s")
    return "  ".join(parts)

"""Callbacks of `fit`: the history of epochs, and the files that are written after each."""

import csv
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint
from torch import Tensor

from ela_probe.data.batches import epoch_seed
from ela_probe.errors import OutputError
from ela_probe.system.csv_files import inert
from ela_probe.system.processes import is_first, rank
from ela_probe.system.storage import replacing
from ela_probe.training.ela.callback import ELA
from ela_probe.training.module import TrainingModule
from ela_probe.training.run_folder import BEST, ELA_LOG, LAST, LOG, RESUME, RunFolder

Save = Callable[[Path, Mapping[str, Tensor], dict[str, float]], object]

ELA_COLUMNS = ("skipped", "ebqm_seconds")
SITE_COLUMNS = ("epoch", "stage", "site", "action", "kl", "shape", "mass", "damage")


class History(pl.Callback):
    """One row per epoch, and `best.pt` whenever an epoch is the best so far.

    It runs before the caller's callbacks, so that `best.pt` holds the model that was validated,
    even if one of them changes the model at the end of the epoch. The module says by which figure
    an epoch is the best (`TrainingModule.best_by`). Without validation samples every epoch counts
    as the best so far.

    Args:
        folder: of `best.pt`.
        save: writes a model's state dict and its metrics to a path.
        definition: what defines the run (`resuming.run_definition`), which `--resume` compares.
    """

    def __init__(self, folder: RunFolder, save: Save, *, definition: Mapping[str, Any]) -> None:
        self.folder, self.output = folder, folder.path
        self.save = save
        self.definition = dict(definition)
        self.rows: list[dict[str, float]] = []
        self.site_rows: list[dict[str, Any]] = []
        self.best: dict[str, float] = {}
        self.has_trained = False
        self._saved_epochs = 0
        self._start = 0.0

    @property
    def state_key(self) -> str:
        """The key of the state in the trainer's checkpoint."""
        return "ela_probe.History"

    def state_dict(self) -> dict[str, Any]:
        """Rows, best row, the definition of the run and digests of its weights: plain values."""
        return {
            "rows": self.rows,
            "site_rows": self.site_rows,
            "best": self.best,
            "origin": self.definition,
            "sha256": self.folder.digests,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the rows of the run that was saved."""
        self.rows = list(state_dict["rows"])
        self.site_rows = list(state_dict.get("site_rows", []))  # older versions had none
        self.best = dict(state_dict["best"])
        self._saved_epochs = len(self.rows)

    @property
    def saved_epochs(self) -> int:
        """How many epochs are in the state that a run is resumed from."""
        return len(self.rows) if self.folder.has_new_state() else self._saved_epochs

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock, and seed the epoch's random numbers by its number."""
        self._start = time.perf_counter()
        module = _training_module(pl_module)
        seed = epoch_seed(module.config.seed, trainer.current_epoch)
        seed = (seed + rank()) % 2**32  # processes drop different paths
        pl.seed_everything(seed, workers=True, verbose=False)

    def on_train_batch_end(self, *_: Any) -> None:
        """Note that a batch was trained: the state of a resumed run is sound until here."""
        self.has_trained = True

    def elapsed(self) -> float:
        """Seconds since the epoch began."""
        return round(time.perf_counter() - self._start, 3)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the epoch's row, and write `best.pt` if the epoch is the best so far."""
        module = _training_module(pl_module)
        trained = module.train_figures()
        module.check_loss(trained["train_loss"], step=module.steps_per_epoch - 1)
        row = {
            "epoch": trainer.current_epoch + 1,
            "lr": module.config.lr
            * module.config.lr_factor(
                max(0, trainer.global_step - 1), steps_per_epoch=module.steps_per_epoch
            ),
            **trained,
        }
        if trainer.val_dataloaders:
            row |= module.val_figures()
        module.reset_sums()
        row["seconds"] = self.elapsed()
        self._saved_epochs = len(self.rows)
        self.folder.begin_epoch()
        self.rows.append(row)
        key, more_is_better = module.best_by
        sign = 1 if more_is_better else -1
        if not self.best or key not in row or sign * row[key] > sign * self.best[key]:
            self.best = row
            self.write_checkpoint(BEST, trainer)

    def write_checkpoint(self, name: str, trainer: pl.Trainer) -> None:
        """Write the model with the last row. All processes call it, the first one writes."""
        states = trainer.strategy.lightning_module_state_dict()
        if not is_first():
            return
        prefix = "model."
        state = {k.removeprefix(prefix): v for k, v in states.items() if k.startswith(prefix)}
        try:
            self.save(self.folder.next(name), state, dict(self.rows[-1]))
            self.folder.weights_written(name)
        except OSError as error:
            raise OutputError(
                f"cannot write {self.output / name}: {error.strerror or error}; "
                "choose another folder with -o, or free some space"
            ) from error


class AddELAColumns(pl.Callback):
    """Adds to an epoch's row what `ELA` did in it; runs right after `ELA`."""

    def __init__(self, history: History, ela: ELA) -> None:
        self.history, self.ela = history, ela

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the skipped share, the seconds of probing and planning and the rows of the sites."""
        self.history.rows[-1].update(self.ela.row, seconds=self.history.elapsed())
        self.history.site_rows += self.ela.site_rows


class WriteLastEpoch(Checkpoint):
    """Writes `last.pt`, the log and the state to resume from; runs after all other callbacks.

    The state comes last: with it the epoch counts.
    """

    def __init__(self, history: History) -> None:
        self.history = history

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the log of a resumed run: a later epoch may have been logged and then lost."""
        if is_first() and self.history.rows:
            self._write_log(_training_module(pl_module).columns)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the files, each atomically."""
        self.history.write_checkpoint(LAST, trainer)
        if not is_first():
            # a collective operation; the first process writes
            trainer.save_checkpoint(self.history.output / RESUME)
            return
        self._write_log(_training_module(pl_module).columns)
        with self.history.folder.new_state() as path:
            trainer.save_checkpoint(path)

    def _write_log(self, of_task: Sequence[str]) -> None:
        rows, output = self.history.rows, self.history.output
        columns = ("epoch", "lr", *of_task, "seconds")
        columns = (*columns, *(name for name in ELA_COLUMNS if any(name in row for row in rows)))
        _write_rows(output / LOG, rows, columns)
        if self.history.site_rows:
            _write_rows(output / ELA_LOG, self.history.site_rows, SITE_COLUMNS)


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows({name: inert(cell) for name, cell in row.items()} for row in rows)


def _training_module(module: pl.LightningModule) -> TrainingModule:
    assert isinstance(module, TrainingModule)
    return module

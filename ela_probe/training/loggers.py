"""`train --logger`: the epochs of a run in TensorBoard, Weights & Biases or MLflow.

`metrics.csv` is always written (`record.py`). The others are Lightning's loggers, each an extra of
the package; they take the same numbers once an epoch and, with ELA, figures of what it measured.
"""

import importlib.util
import io
import math
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from ela_probe.errors import OptionError
from ela_probe.system.messages import did_you_mean, first_line
from ela_probe.training.ela.callback import ELA
from ela_probe.training.record import History

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CSV = "csv"
LOGGERS = (CSV, "tensorboard", "wandb", "mlflow")  # by name; also the names of extras and packages
PROJECT = "ela-probe"  # of W&B and MLflow, unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME says else


def parse_loggers(text: str) -> tuple[str, ...]:
    """The loggers of `csv,tensorboard`, without `csv`, which is always written.

    Raises:
        OptionError: a name is unknown, or its package is not installed.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in LOGGERS:
            raise OptionError(
                f"got --logger {name!r}, expected {', '.join(LOGGERS)}, with commas between "
                f"several{did_you_mean(name, LOGGERS)}"
            )
    chosen = tuple(dict.fromkeys(name for name in names if name != CSV))
    for name in chosen:
        check_installed(name)
    return chosen


def check_installed(name: str) -> None:
    """Raise OptionError where the package of a logger is missing."""
    if name != CSV and importlib.util.find_spec(name) is None:
        raise OptionError(
            f"the logger {name} needs the package {name}, which is not installed: "
            f"pip install 'ela-probe[{name}]'"
        )


class LogEpochs(pl.Callback):
    """Gives each epoch's row to the loggers; runs after `History` and `ELA`. Steps are epochs.

    With ELA there are, for each stage, the mean divergence from the retrieval before
    (`divergence/STAGE`, nats), the sum of the damages of its sites under ELA's action
    (`damage/STAGE`, nats, where they are measured), and figures as long as the plan may change.
    A resumed run goes on in the same TensorBoard folder, W&B run and MLflow run.

    Args:
        names: of `LOGGERS`, without csv.
        history: has the rows.
        ela: the callback that prunes, if there is one.
    """

    def __init__(self, names: Sequence[str], history: History, ela: ELA | None = None) -> None:
        for name in names:
            check_installed(name)
        self.names, self.history, self.ela = tuple(names), history, ela
        self.runs: dict[str, str] = {}
        self._loggers: dict[str, Logger] = {}

    @property
    def state_key(self) -> str:
        """The key of the state in the trainer's checkpoint."""
        return "ela_probe.LogEpochs"

    def state_dict(self) -> dict[str, Any]:
        """The identifier of the run in each logger."""
        return {"runs": dict(self.runs)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on in the runs of the state."""
        self.runs = dict(state_dict["runs"])

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the loggers, or go on with their runs. Raises OptionError where one refuses."""
        for name in self.names:
            known = self.runs.get(name)
            try:
                logger, self.runs[name] = _started(name, self.history.output, known)
                if known is None:
                    logger.log_hyperparams(_flat(self.history.definition))
            except Exception as error:  # each has errors of its own
                raise OptionError(
                    f"the logger {name} does not start ({first_line(error)}): see its "
                    "documentation, or leave it out of --logger"
                ) from error
            self._loggers[name] = logger

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the epoch's row and, with ELA, what it measured."""
        row = self.history.rows[-1]
        epoch = int(row["epoch"])
        figures: dict[str, Figure] = {}
        if self.ela is not None and self.ela.measured:
            row = {**row, **_measured(self.ela)}
            figures = dict(_figures(self.ela))
        for name, logger in self._loggers.items():
            logger.log_metrics(row, step=epoch)
            for title, figure in figures.items():
                _log_figure(name, logger, title, figure, epoch)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """End the runs; what they hold is written."""
        self._finish("success")

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """End the runs as failed."""
        self._finish("failed")

    def _finish(self, status: str) -> None:
        loggers, self._loggers = self._loggers, {}
        for logger in loggers.values():
            logger.finalize(status)
            if isinstance(logger, WandbLogger):
                logger.experiment.finish(exit_code=int(status != "success"))


def _started(name: str, output: Path, known: str | None) -> tuple[Logger, str]:
    """A logger that writes, and the identifier of its run; `known` is that of an earlier part."""
    if name == "tensorboard":
        board = TensorBoardLogger(
            output, name="tensorboard", version="", default_hp_metric=False
        )  # a resumed run adds a file to the folder
        return board, "tensorboard"
    if name == "wandb":
        run = known or uuid.uuid4().hex[:8]
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        wandb = WandbLogger(
            name=output.name, save_dir=output, project=project, id=run, resume="allow"
        )
        _ = wandb.experiment  # starts it
        return wandb, run
    mlflow = MLFlowLogger(
        os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT),
        run_name=output.name,
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or _local_store(output),
        run_id=known,
    )
    run_id = mlflow.run_id
    assert run_id is not None  # the first process only
    return mlflow, run_id


def _local_store(output: Path) -> str:
    """The address of an MLflow store in the run's folder."""
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 asks for it
    return (output / "mlruns").resolve().as_uri()


def _flat(definition: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {
        f"{section}/{name}": value
        for section, settings in definition.items()
        for name, value in settings.items()
    }


def _measured(ela: ELA) -> dict[str, float]:
    """The scalars of the averages over epochs, by stage."""
    found: dict[str, float] = {}
    for part in ela.analysis.stages:
        kl = part.adjacent("kl")[1:]
        if kl.size:
            found[f"divergence/{part.stage.name}"] = float(kl.mean())
        if part.damage is not None:
            action, sites = ela.config.action, range(len(part.stage.sites))
            estimates = [e for t in sites if (e := part.damage.of(t, action)) is not None]
            found[f"damage/{part.stage.name}"] = math.fsum(e.mean for e in estimates)
    return found


def _figures(ela: ELA) -> "Iterator[tuple[str, Figure]]":
    """The figures of the averages, and of the plan if there is one, by name."""
    from ela_probe.report import plots

    analysis = ela.analysis
    yield "adjacent", plots.adjacent_divergence(analysis)[0]
    for part in analysis.stages:
        yield f"kl-{part.stage.name}", plots.divergence_heatmap(part)[0]
    if ela.plan is not None:
        yield "plan", plots.skip_plan(ela.plan)[0]


def _log_figure(name: str, logger: Any, title: str, figure: "Figure", epoch: int) -> None:
    if name == "tensorboard":
        logger.experiment.add_figure(title, figure, global_step=epoch)
    elif name == "wandb":
        from PIL import Image

        with io.BytesIO() as file:
            figure.savefig(file, format="png")
            logger.log_image(title, [Image.open(file)], step=epoch)
    else:
        path = f"figures/epoch-{epoch:04d}/{title}.png"
        logger.experiment.log_figure(logger.run_id, figure, path)

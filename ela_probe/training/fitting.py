"""Training a classifier: Lightning underneath, our files and messages on top."""

import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from torch import nn

from ela_probe.data import Data
from ela_probe.device import resolve_device
from ela_probe.errors import CheckpointError, OptionError, OutputError
from ela_probe.freed_memory import keeping_freed_memory
from ela_probe.storage import output_directory
from ela_probe.training.config import TrainConfig
from ela_probe.training.display import EpochDisplay
from ela_probe.training.ela import ELA
from ela_probe.training.module import ClassificationModule
from ela_probe.training.record import (
    BEST,
    LAST,
    LOG,
    RESUME,
    History,
    KeepLast,
    NoteELA,
    Save,
    fitting_shapes,
    origin_of,
)

MAY_DIFFER = ("num_workers",)  # on --resume: it changes no result


@dataclass(frozen=True)
class FitResult:
    """What a finished run left behind.

    A row of metrics has `epoch` (from 1), `lr` (of its last step), `train_loss` and `val_loss`
    (nats), `train_accuracy` and `val_accuracy` (fractions of 1) and `seconds`; the two of the
    validation are absent where no images were set aside. Of an ELA run it also has `skipped` (share
    of all retrievals) and `ebqm_seconds`; `ela` is what `ELA.summary` says of the run.
    """

    best: Path
    last: Path
    log: Path
    state: Path
    best_metrics: dict[str, float]
    last_metrics: dict[str, float]
    epochs: int
    seconds: float
    history: list[dict[str, float]]
    ela: dict[str, Any] | None = None


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C during `fit`; the message says what is kept and how to go on."""


def fit(
    model: nn.Module,
    data: Data,
    config: TrainConfig,
    *,
    output: Path,
    save: Save,
    device: str = "auto",
    resume: bool = False,
    progress: bool = True,
    callbacks: Sequence[pl.Callback] = (),
) -> FitResult:
    """Train `model` on the training samples of `data`; afterwards it holds the last weights.

    Writes into `output`, each file atomically and at the end of every epoch: `best.pt` (highest
    validation accuracy, of text lowest loss; the last epoch where nothing is set aside), `last.pt`,
    `metrics.csv` (a row an epoch) and `resume.ckpt` (the trainer's full state). A run that is
    resumed from there goes on as if it had never stopped: on a CPU the weights are equal to the
    last bit.

    Args:
        model: maps images (N, C, H, W) to logits (N, K), or tokens (N, L) to (N, L, K); trained
            in place.
        data: that the model fits it is the caller's to check (`pipeline.check_fit`).
        config: the settings.
        output: folder to write into; made if need be.
        save: called as `save(path, model, metrics)`; writes `best.pt` and `last.pt`.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        resume: continue from `output`/resume.ckpt.
        progress: a bar on stderr, or a line an epoch where that is no terminal; False is silent.
        callbacks: Lightning callbacks, `ELA` for one. They run after `best.pt` is written and
            before `last.pt` and `resume.ckpt` are, so one that changes the model at the end of an
            epoch changes what is kept as the last.

    Raises:
        OptionError: a setting doesn't work here, or the loss is not finite.
        OutputError: `output` can't be written to.
        CheckpointError: there is nothing to resume, or it is of another model, data or setting.
        DataError: the images can't be read.
        TrainingInterrupted: Ctrl-C.
    """
    where = resolve_device(device)
    if config.precision == "16-mixed" and where.type == "cpu":
        raise OptionError("precision 16-mixed needs a GPU: choose bf16-mixed or 32-true on a CPU")
    output = output_directory(output)
    train = data.loader(
        "train",
        batch_size=config.batch_size,
        shuffle=True,
        augment=True,
        seed=config.seed,
        num_workers=config.num_workers,
    )
    validation = None
    if data.size("val"):
        validation = data.loader(
            "val", batch_size=config.batch_size, num_workers=config.num_workers
        )
    module = ClassificationModule(
        model, config, num_classes=data.spec.num_classes, steps_per_epoch=len(train)
    )
    model.train()
    ela = next((callback for callback in callbacks if isinstance(callback, ELA)), None)
    origin = {
        "config": config.model_dump(),
        "data": _what(data),
        "ela": {} if ela is None else ela.config.model_dump(),
    }
    history = History(output, save, origin=origin, by_loss=data.spec.task == "tokens")
    state = output / RESUME
    if resume:
        epochs_done = _check_resume(state, module, origin=origin, ela=ela)
        # Lightning starts the workers of a resumed epoch before it tells the sampler which it is
        train.sampler.set_epoch(epochs_done)  # type: ignore[attr-defined]
    else:
        state.unlink(missing_ok=True)

    start = time.perf_counter()
    with _quiet(), _restored(), keeping_freed_memory():
        trainer = pl.Trainer(
            accelerator="gpu" if where.type == "cuda" else where.type,
            devices=[where.index or 0] if where.type == "cuda" else 1,
            precision=config.precision,
            max_epochs=config.epochs,
            gradient_clip_val=config.gradient_clip,
            deterministic=config.deterministic,
            callbacks=[
                history,
                *callbacks,
                *([] if ela is None else [NoteELA(history, ela)]),
                *([EpochDisplay(history)] if progress else []),
                KeepLast(history),
            ],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            inference_mode=False,  # a callback may keep what it saw during validation
            use_distributed_sampler=False,
            plugins=[LightningEnvironment()],
            default_root_dir=output,
        )
        try:
            trainer.fit(
                module,
                train,
                validation,
                ckpt_path=state if resume else None,
                weights_only=True if resume else None,
            )
        except SystemExit:  # Lightning's answer to Ctrl-C
            if not trainer.interrupted:
                raise
            raise TrainingInterrupted(_how_to_go_on(history, config)) from None
        except RuntimeError as error:
            # torch.save's own words for a full disk
            if "PytorchStreamWriter" in str(error) or "unexpected pos" in str(error):
                raise OutputError(
                    f"cannot write into {output}: the disk may be full; free some space or choose "
                    "another folder with -o"
                ) from error
            raise
    return FitResult(
        best=output / BEST,
        last=output / LAST,
        log=output / LOG,
        state=state,
        best_metrics=history.best,
        last_metrics=history.rows[-1],
        epochs=len(history.rows),
        seconds=time.perf_counter() - start,
        history=history.rows,
        ela=None if ela is None else ela.summary(),
    )


def _what(data: Data) -> dict[str, Any]:
    """What makes the images what they are: where they lie may change until the run is resumed."""
    return data.spec.model_dump(mode="json", exclude={"source", "root"})


def _check_resume(path: Path, module: nn.Module, *, origin: dict[str, Any], ela: ELA | None) -> int:
    """Number of epochs done in the state at `path`; ELA prunes the module as it was then.

    Raises:
        CheckpointError: it can't go on.
    """
    if not path.is_file():
        raise CheckpointError(f"nothing to resume: {path} does not exist; start without --resume")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile, pickle and torch each have their own
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{path} can't be read ({reason}): start again without --resume"
        ) from error
    kept = origin_of(state) if isinstance(state, dict) else None
    if kept is None:
        raise CheckpointError(f"{path} is no training state of ela-probe: start without --resume")
    # a run of before a setting was added had what is its default now
    kept = {**kept, "config": {**TrainConfig().model_dump(), **kept["config"]}}
    differing = [
        f"{'ela ' * (part == 'ela')}{name} {then.get(name)!r} then, {now.get(name)!r} now"
        for part, then, now in ((p, kept.get(p, {}), origin[p]) for p in ("config", "data", "ela"))
        for name in (then | now if part == "ela" else now)
        if name not in MAY_DIFFER and _plain(then.get(name)) != _plain(now.get(name))
    ]
    if differing:
        raise CheckpointError(
            f"{path} is of a run with other settings ({'; '.join(differing)}): repeat the ones "
            "it was started with, or start again without --resume"
        )
    if ela is not None:
        ela.rebuild(module, state["callbacks"].get(ela.state_key))
    unfit = fitting_shapes(state["state_dict"], module)
    if unfit:
        raise CheckpointError(
            f"{path} is of another model: {len(unfit)} tensors differ, the first is {unfit[0]}; "
            "name the model that the run was started with"
        )
    return len(state["callbacks"]["ela_probe.History"]["rows"])


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _how_to_go_on(history: History, config: TrainConfig) -> str:
    done = len(history.rows)
    state = history.output / RESUME
    if not done or not state.exists():
        return "training was interrupted before an epoch ended: nothing is kept"
    return (
        f"training was interrupted after epoch {done} of {config.epochs}: "
        f"{history.output / LAST} holds it; the same command with --resume goes on from there"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's banners, tips and hints; errors still come as exceptions."""
    loggers = [logging.getLogger(n) for n in ("pytorch_lightning", "lightning_fabric")]
    loggers += [
        logger
        for name, logger in logging.root.manager.loggerDict.items()
        if isinstance(logger, logging.Logger)
        and logger.level
        and name.startswith(("pytorch_lightning.", "lightning_fabric."))
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for name in ("pytorch_lightning", "lightning_fabric"):
                warnings.filterwarnings("ignore", module=rf"{name}\.")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _restored() -> Iterator[None]:
    """Put back what Lightning changes for good: Ctrl-C, deterministic kernels, environment."""
    interrupt = signal.getsignal(signal.SIGINT)
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    names = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "CUBLAS_WORKSPACE_CONFIG")
    environment = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
        for name, value in environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if threading.current_thread() is threading.main_thread() and interrupt is not None:
            signal.signal(signal.SIGINT, interrupt)

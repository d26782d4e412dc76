"""`fit`: train a network with Lightning, and write our files and messages."""

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.utils.data import DataLoader

from ela_probe.data.batches import Share
from ela_probe.data.images import ImageData
from ela_probe.data.opening import Data
from ela_probe.errors import DataError, OptionError, OutputError
from ela_probe.system.device import resolve_device
from ela_probe.system.lightning_logging import quiet_lightning
from ela_probe.system.outputs import check_resumable
from ela_probe.system.processes import Processes, is_first, lost_peer_as_error, process_count, rank
from ela_probe.system.storage import output_directory
from ela_probe.training.config import TrainConfig
from ela_probe.training.detection import DetectionModule
from ela_probe.training.display import EpochDisplay
from ela_probe.training.ela.callback import ELA
from ela_probe.training.ela.wrapping import check_strategy
from ela_probe.training.loggers import LogEpochs
from ela_probe.training.module import ClassificationModule, TrainingModule
from ela_probe.training.record import AddELAColumns, History, Save, WriteLastEpoch
from ela_probe.training.resuming import (
    Definition,
    check_resume,
    how_to_resume,
    refusing_state,
    run_definition,
)
from ela_probe.training.run_folder import BEST, LAST, LOG, RESUME, RunFolder


@dataclass(frozen=True)
class FitResult:
    """The files and metrics of a finished run.

    A row of metrics has `epoch` (from 1), `lr` (of its last step), `train_loss` and `val_loss`
    (nats), `train_accuracy` and `val_accuracy` (fractions of 1) and `seconds`. The two validation
    metrics are absent if no samples were set aside. Detectors have `val_ap` and other figures of
    average precision instead of accuracies (`DetectionModule`). With ELA a row also has `skipped`
    (share of all retrievals) and `ebqm_seconds`, and `ela` is the result of `ELA.summary`.
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
    """Ctrl-C during `fit`; the message says what is kept and how to resume."""


def fit(
    model: nn.Module,
    data: Data,
    config: TrainConfig,
    *,
    output: Path,
    save: Save,
    device: str = "auto",
    processes: Processes = Processes(),
    resume: bool = False,
    progress: bool = True,
    callbacks: Sequence[pl.Callback] = (),
    loggers: Sequence[str] = (),
    definition: Definition | None = None,
) -> FitResult:
    """Train `model` on the training samples of `data`; afterwards it holds the last weights.

    At the end of every epoch these files are written atomically into `output`: `best.pt` (highest
    validation accuracy, for text lowest loss, for detectors highest `val_ap`; the last epoch
    without validation samples), `last.pt`, `metrics.csv` (a row per epoch) and `resume.ckpt` (the
    trainer's full state). A run that is resumed from it continues as if it had never stopped: on a
    CPU the weights are equal to the last bit. Where the run was killed between two of these files,
    the weights are those of the state (`run_folder`).

    Args:
        model: maps images (N, C, H, W) to logits (N, K), or tokens (N, L) to (N, L, K), or is a
            `Detector`; trained in place.
        data: the caller checks that the model fits the data (`pipeline.check_data`).
        config: the settings.
        output: folder to write into; created if it does not exist.
        save: called as `save(path, state_dict, metrics)`; writes the weights to a `.pt` file.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        processes: how many train together, each on a part of every batch; the first one writes.
        resume: continue from `output`/resume.ckpt.
        progress: a progress bar on stderr, or a line per epoch if that is no terminal; False: none.
        callbacks: Lightning callbacks, for example `ELA`. They run after the weights for `best.pt`
            are taken and before those for `last.pt` and `resume.ckpt` are: if one changes the model
            at the end of an epoch, the last two hold the changed model.
        loggers: names of `loggers.LOGGERS` that get every epoch's row too.
        definition: what else defines the run, as plain values by section: how the model was built
            (`model`), the weights that it starts from (`start`). It is compared when the run is
            resumed, and so are `config`, `data` and the settings of ELA; more epochs are allowed.

    Raises:
        OptionError: a setting does not work on this device, the loss is not finite, or the package
            of a logger is missing.
        OutputError: `output` can't be written to.
        CheckpointError: there is nothing to resume, the folder is not whole, or the run was defined
            differently (all differences are listed).
        DataError: the images can't be read, are too few for the processes, or can't be kept on a
            device.
        ProcessError: another process ended.
        TrainingInterrupted: Ctrl-C.
    """
    where = resolve_device(device)
    if config.precision == "16-mixed" and where.type == "cpu":
        raise OptionError("precision 16-mixed needs a GPU: choose bf16-mixed or 32-true on a CPU")
    if config.precision == "16-mixed" and processes.strategy == "fsdp":
        raise OptionError(
            "precision 16-mixed does not work with FSDP: choose bf16-mixed or 32-true"
        )
    if resume:
        check_resumable(output / RESUME)  # before a folder is made
    output = output_directory(output)
    ela = next((callback for callback in callbacks if isinstance(callback, ELA)), None)
    placement = _placement(where, processes, ela)
    train, validation = _loaders(data, config, Share(0, processes.count))
    module = _module(model, data, config, steps_per_epoch=len(train))
    model.train()
    defined = run_definition(config, data, ela, definition or {})
    state = output / RESUME
    epochs_done, digests = (
        check_resume(state, module, definition=defined, ela=ela) if resume else (0, {})
    )
    folder = RunFolder(output, digests)
    history = History(folder, save, definition=defined)
    logging = LogEpochs(loggers, history, ela)

    where = processes.launch(where)  # after all checks of what the user gave
    if config.data_on_device:
        data = on_device(data, where)
    train, validation = _loaders(data, config, Share(rank(), process_count()))
    # Lightning starts the workers of a resumed epoch before it gives the sampler its number
    train.sampler.set_epoch(epochs_done)  # type: ignore[attr-defined]
    if is_first():
        if not resume:
            state.unlink(missing_ok=True)
        folder.settle()

    start = time.perf_counter()
    with quiet_lightning(), _global_state_restored(), lost_peer_as_error():
        trainer = pl.Trainer(
            accelerator="gpu" if where.type == "cuda" else where.type,
            **placement,
            precision=config.precision,
            max_epochs=config.epochs,
            gradient_clip_val=config.gradient_clip,
            deterministic=config.deterministic,
            callbacks=[
                history,
                *callbacks,
                *([] if ela is None else [AddELAColumns(history, ela)]),
                *([logging] if loggers and is_first() else []),
                *([EpochDisplay(history)] if progress and is_first() else []),
                WriteLastEpoch(history),
            ],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            inference_mode=False,  # a callback may keep tensors from validation
            use_distributed_sampler=False,
            default_root_dir=output,
        )
        try:
            with refusing_state(state, history) if resume else nullcontext():
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
            raise TrainingInterrupted(how_to_resume(history, config)) from None
        except RuntimeError as error:
            # what torch.save says when the disk is full
            if "PytorchStreamWriter" in str(error) or "unexpected pos" in str(error):
                raise OutputError(
                    f"cannot write into {output}: the disk may be full; free some space or choose "
                    "another folder with -o"
                ) from error
            raise
        finally:
            if is_first():
                folder.abandon_epoch()
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


def _module(
    model: nn.Module, data: Data, config: TrainConfig, *, steps_per_epoch: int
) -> TrainingModule:
    """The Lightning module of the data's task."""
    spec = data.spec
    if spec.task == "detection":
        return DetectionModule(model, config, steps_per_epoch=steps_per_epoch)
    return ClassificationModule(
        model,
        config,
        num_classes=spec.num_classes,
        steps_per_epoch=steps_per_epoch,
        by_loss=spec.task == "tokens",
    )


def _placement(where: torch.device, processes: Processes, ela: ELA | None) -> dict[str, Any]:
    """The Trainer's options for devices and strategy. Raises OptionError: ELA can't work there."""
    if processes.count == 1:
        return {
            "devices": [where.index or 0] if where.type == "cuda" else 1,
            "plugins": [LightningEnvironment()],
        }
    strategy: Strategy
    if processes.strategy == "fsdp":
        strategy = ModelParallelStrategy(
            processes.count, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    else:
        strategy = DDPStrategy(find_unused_parameters=ela is not None and ela.config.stochastic)
    if ela is not None:
        check_strategy(strategy, stochastic=ela.config.stochastic)
    return {"devices": processes.devices, "num_nodes": processes.nodes, "strategy": strategy}


def _loaders(
    data: Data, config: TrainConfig, share: Share
) -> "tuple[DataLoader[Any], DataLoader[Any] | None]":
    """Training batches and, if samples are set aside, validation batches. Raises DataError."""
    size, workers = config.batch_size, config.num_workers
    train = data.loader(
        "train",
        batch_size=size,
        shuffle=True,
        augment=True,
        seed=config.seed,
        num_workers=workers,
        share=share,
    )
    if not data.size("val"):
        return train, None
    return train, data.loader("val", batch_size=size, num_workers=workers, share=share)


def on_device(data: Data, device: torch.device) -> Data:
    """The data, kept on a device. Raises DataError: they are no images in memory."""
    if not isinstance(data, ImageData):
        raise DataError(
            f"data_on_device: got {data.spec.source}, expected images; leave data_on_device out"
        )
    return data.on_device(device)


@contextmanager
def _global_state_restored() -> Iterator[None]:
    """Restore global state that Lightning changes: Ctrl-C, deterministic kernels, environment."""
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

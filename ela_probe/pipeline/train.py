"""Train a model from scratch, and fine-tune a checkpoint."""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ela_probe.analysis.result import Provenance
from ela_probe.checkpoint import Checkpoint, save_beside, save_checkpoint
from ela_probe.data.opening import Data
from ela_probe.errors import DataError
from ela_probe.models.registry import ModelSpec, family_of
from ela_probe.pipeline.backbone import detector_over
from ela_probe.pipeline.inputs import check_data, check_task, data_for
from ela_probe.pruning.plan import SkipPlan
from ela_probe.system.checkpoint_file import read_file
from ela_probe.system.outputs import refuse_inputs, refuse_other_folder
from ela_probe.system.processes import Processes, is_first
from ela_probe.system.storage import replacing
from ela_probe.system.versions import versions
from ela_probe.training.config import TrainConfig
from ela_probe.training.ela.callback import ELA
from ela_probe.training.ela.config import ELAConfig
from ela_probe.training.run_folder import BEST, LAST, LOG, RESUME
from ela_probe.training.trainer import FitResult, fit

PLAN = "plan.json"


def train(
    spec: ModelSpec,
    data: Data,
    config: TrainConfig,
    *,
    output: Path,
    ela: ELAConfig | None = None,
    backbone: Path | None = None,
    device: str = "auto",
    processes: Processes = Processes(),
    resume: bool = False,
    progress: bool = True,
    loggers: Sequence[str] = (),
) -> FitResult:
    """Train a model from scratch on `data`, whose classes and channels, or tokens, it gets.

    Writes `best.pt`, `last.pt`, `metrics.csv` and `resume.ckpt` into `output`; with `ela`, which
    skips retrievals in training (`training.ELA`), also `plan.json`. `loggers` are names of
    `training.loggers.LOGGERS`, which get every epoch's row too. With `backbone`, a classification
    checkpoint, a detector starts from its weights and pruning (`backbone.detector_over`).

    Raises:
        ModelError, OptionError, PlanError, DataError, OutputError, CheckpointError (on resume).
    """
    check_task(spec, data.spec.source)
    sizes = data.spec.model_arguments()
    if family_of(spec.name) is not None:
        for name, value in sizes.items():
            if spec.args.get(name, value) != value:
                raise DataError(
                    f"the data {data.spec.source} has {name}={value}, but the model was asked for "
                    f"{name}={spec.args[name]}; leave it out, it follows the data"
                )
        spec = spec.model_copy(update={"args": {**spec.args, **sizes}})
    torch.manual_seed(config.seed)
    plans: tuple[SkipPlan, ...] = ()
    start: dict[str, Any] = {}
    if backbone is None:
        model = spec.build()
    else:
        model, spec, plans = detector_over(spec, backbone)
        start = {"backbone (SHA-256)": hashlib.sha256(backbone.read_bytes()).hexdigest()}
    callback = None
    if ela is not None:
        provenance = Provenance(
            model=spec.name, model_args=spec.args, data=data.spec.source, versions=versions()
        )
        callback = ELA(ela, path=output / PLAN, provenance=provenance)
    return _fit(
        model, spec, plans, data, config, output, device, processes, resume, progress, loggers,
        callback, start=start,
    )  # fmt: skip


def finetune(
    checkpoint: Checkpoint,
    config: TrainConfig,
    *,
    output: Path,
    data: Data | None = None,
    device: str = "auto",
    processes: Processes = Processes(),
    resume: bool = False,
    progress: bool = True,
    loggers: Sequence[str] = (),
) -> FitResult:
    """Continue to train a checkpoint, pruned or not, and write the best weights to `output`.

    The run itself (log, last weights, state to resume from) lies beside it in
    `<output stem>-run/`. The checkpoint's model is trained in place. From a directory of
    transformers a directory is made; the files of the run are state dicts.

    Args:
        data: replaces the data that the checkpoint names.

    Raises:
        CheckpointError, DataError, OptionError, OutputError: as `data_for` and `train`; also where
            `output`, or a file of the run, is the checkpoint itself.
    """
    folder = output.parent / f"{output.stem}-run"
    refuse_inputs(
        [output, *(folder / name for name in (BEST, LAST, LOG, RESUME))], [checkpoint.path]
    )
    if checkpoint.is_directory:
        refuse_other_folder(output)
    data = data or data_for(checkpoint)
    header = checkpoint.header
    result = _fit(
        checkpoint.model, header.model, header.plans, data, config, folder, device, processes,
        resume, progress, loggers, start={"checkpoint (SHA-256)": checkpoint.sha256},
    )  # fmt: skip
    if is_first() and checkpoint.is_directory:
        checkpoint.model.load_state_dict(read_file(result.best).state)
        save_beside(
            checkpoint, output, checkpoint.model, plans=header.plans, data=data.spec,
            metrics=result.best_metrics,
        )  # fmt: skip
    elif is_first():
        with replacing(output) as temporary:
            shutil.copyfile(result.best, temporary)
    return result


def _fit(
    model: nn.Module,
    spec: ModelSpec,
    plans: Sequence[SkipPlan],
    data: Data,
    config: TrainConfig,
    output: Path,
    device: str,
    processes: Processes,
    resume: bool,
    progress: bool,
    loggers: Sequence[str],
    ela: ELA | None = None,
    *,
    start: Mapping[str, Any] | None = None,
) -> FitResult:
    check_data(model, data)
    built = spec.model_dump(mode="json")
    arguments = {f"argument {name}": value for name, value in built["args"].items()}
    definition = {"model": {"name": built["name"], **arguments}, "start": start or {}}

    def save(path: Path, state: Mapping[str, Tensor], metrics: Mapping[str, float]) -> None:
        carried = plans if ela is None or ela.plan is None else (*plans, ela.plan)
        save_checkpoint(
            path, state, spec=spec, plans=carried, data=data.spec, metrics=dict(metrics)
        )

    return fit(
        model, data, config, output=output, save=save, device=device, processes=processes,
        resume=resume, progress=progress, callbacks=[] if ela is None else [ela],
        loggers=loggers, definition=definition,
    )  # fmt: skip

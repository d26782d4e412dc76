"""Fit the stand-ins of a plan to each other on a checkpoint's data, and measure the whole plan."""

import math

from ela_probe.analysis.stand_ins import FIT_SAMPLES
from ela_probe.checkpoint import Checkpoint
from ela_probe.data.opening import Data
from ela_probe.evaluation.loss_change import loss_change
from ela_probe.pipeline.inputs import Split, batch_size_for, check_data, data_for
from ela_probe.pruning.plan import MeasuredLoss, SkipPlan
from ela_probe.pruning.prune import prune
from ela_probe.pruning.refit import refit_stand_ins
from ela_probe.system.device import resolve_device
from ela_probe.system.numbers import finite_or_none

# How many samples tell the loss change of a plan: two passes over them take about as long as
# fitting four stand-ins.
MEASURED_SAMPLES = 512


def refit_and_measure(
    checkpoint: Checkpoint,
    plan: SkipPlan,
    *,
    data: Data | None = None,
    samples: int | None = None,
    device: str = "auto",
    progress: bool = True,
) -> SkipPlan:
    """The plan with stand-ins that are fitted to each other, and with its measured loss change.

    The latter is measured on the split of the plan's analysis, and only where that one has
    predicted a loss: otherwise the data may have no labels.

    Args:
        data: replaces the data that the checkpoint names.
        samples: measure on at most so many; by default on `MEASURED_SAMPLES`.

    Raises:
        PlanError, DataError, CheckpointError: as `refit_checkpoint` and `measure_plan`.
    """
    predicts = plan.origin.predicted_loss is not None
    if not plan.changes or not (plan.stand_ins or predicts):
        return plan
    data = data or data_for(checkpoint)
    plan = refit_checkpoint(checkpoint, plan, data=data, device=device, progress=progress)
    if not predicts:
        return plan
    return measure_plan(
        checkpoint, plan, data=data, split=plan.origin.split or "train",  # type: ignore[arg-type]
        samples=samples or MEASURED_SAMPLES, device=device, progress=progress,
    )  # fmt: skip


def refit_checkpoint(
    checkpoint: Checkpoint,
    plan: SkipPlan,
    *,
    data: Data | None = None,
    split: Split = "train",
    device: str = "auto",
    progress: bool = True,
) -> SkipPlan:
    """The plan with stand-ins that are fitted one after the other (`pruning.refit`).

    Args:
        data: replaces the data that the checkpoint names.
        split: the samples to fit to, at most `FIT_SAMPLES` and half of them, unaugmented.

    Raises:
        PlanError, DataError, CheckpointError: as `prune` and `data_for`.
    """
    if not plan.stand_ins:
        return plan
    data = data or data_for(checkpoint)
    check_data(checkpoint.model, data)
    checkpoint.model.to(resolve_device(device))
    batches = data.loader(
        split,
        batch_size=batch_size_for(data, None, 64),
        limit=fitted_samples(data, split),
        num_workers=0,
    )
    return refit_stand_ins(checkpoint.model, plan, batches, progress=progress)


def measure_plan(
    checkpoint: Checkpoint,
    plan: SkipPlan,
    *,
    data: Data | None = None,
    split: Split = "train",
    samples: int = MEASURED_SAMPLES,
    device: str = "auto",
    progress: bool = True,
) -> SkipPlan:
    """The plan with the loss change of all its actions together, measured in two passes.

    The sum of single damages that a plan predicts knows nothing of what the actions do to each
    other, nor of stand-ins that were fitted anew. This measures both, on samples of `split` that
    `refit_checkpoint` does not fit to.

    Args:
        samples: at most so many.

    Returns: the same plan where nothing is changed, or where the split has a single sample.

    Raises:
        PlanError, DataError, CheckpointError: as `prune`, `data_for` and `loss_change`.
    """
    data = data or data_for(checkpoint)
    fitted = fitted_samples(data, split)
    if not plan.changes or data.size(split) <= fitted:
        return plan
    check_data(checkpoint.model, data)
    found = loss_change(
        checkpoint.model,
        prune(checkpoint.model, plan),
        data.loader(
            split,
            batch_size=batch_size_for(data, None, 64),
            limit=samples,
            after=fitted,
            num_workers=0,
        ),
        resolve_device(device),
        progress=progress,
    )
    measured = MeasuredLoss(
        mean=found.change, se=finite_or_none(found.se), samples=found.samples, split=split
    )
    origin = plan.origin.model_copy(update={"measured_loss": measured})
    return plan.model_copy(update={"origin": origin})


def fitted_samples(data: Data, split: Split) -> int:
    """How many samples of a split stand-ins are fitted to."""
    return min(FIT_SAMPLES, math.ceil(data.size(split) / 2))

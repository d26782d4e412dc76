"""Fit the stand-ins of a plan to each other, on a checkpoint's data."""

from ela_probe.analysis.stand_ins import FIT_SAMPLES
from ela_probe.checkpoint import Checkpoint
from ela_probe.data.opening import Data
from ela_probe.pipeline.inputs import Split, check_data, data_for
from ela_probe.pruning.plan import SkipPlan
from ela_probe.pruning.refit import refit_stand_ins
from ela_probe.system.device import resolve_device


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
        split: the samples to fit to, at most `FIT_SAMPLES`, unaugmented.

    Raises:
        PlanError, DataError, CheckpointError: as `prune` and `data_for`.
    """
    if not plan.stand_ins:
        return plan
    data = data or data_for(checkpoint)
    check_data(checkpoint.model, data)
    checkpoint.model.to(resolve_device(device))
    batches = data.loader(split, batch_size=64, limit=FIT_SAMPLES, num_workers=0)
    return refit_stand_ins(checkpoint.model, plan, batches, progress=progress)

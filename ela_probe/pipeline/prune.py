"""Carry out a plan on a checkpoint, and measure what it does to the loss."""

from pathlib import Path

from ela_probe.checkpoint import Checkpoint, save_beside
from ela_probe.data.opening import Data
from ela_probe.errors import DataError
from ela_probe.evaluation.loss_change import LossChange, loss_change
from ela_probe.pipeline.inputs import check_data, data_for
from ela_probe.pruning.plan import SkipPlan
from ela_probe.pruning.prune import prune
from ela_probe.system.device import resolve_device
from ela_probe.system.outputs import refuse_inputs


def prune_checkpoint(checkpoint: Checkpoint, plan: SkipPlan, *, output: Path) -> Checkpoint:
    """Carry out a plan on a checkpoint, write the smaller one to `output` and return it.

    Raises:
        PlanError: the plan was made for other sites.
        OutputError: `output` can't be written, or is the checkpoint itself.
    """
    refuse_inputs([output], [checkpoint.path])
    header = checkpoint.header
    plans = (*header.plans, plan)
    smaller = prune(checkpoint.model, plan)
    digest = save_beside(checkpoint, output, smaller, plans=plans, data=header.data)
    return Checkpoint(
        path=output,
        model=smaller,
        header=header.model_copy(update={"plans": plans, "metrics": {}}),
        sha256=digest,
    )


def check_loss(
    checkpoint: Checkpoint,
    pruned: Checkpoint,
    samples: int,
    *,
    data: Data | None = None,
    device: str = "auto",
    progress: bool = True,
) -> LossChange:
    """How pruning changed the loss, on held-out samples: of the validation split, else the test.

    Args:
        samples: at most so many.
    """
    data = data or data_for(checkpoint)
    check_data(checkpoint.model, data)
    try:
        loader = data.loader("val", limit=samples)
    except DataError:  # it has no validation samples
        loader = data.loader("test", limit=samples)
    return loss_change(
        checkpoint.model, pruned.model, loader, resolve_device(device), progress=progress
    )

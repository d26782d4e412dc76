"""Plan by damage in rounds: measure again on the partly pruned model."""

import math
from typing import Literal

from ela_probe.analysis.result import Analysis
from ela_probe.checkpoint import Checkpoint
from ela_probe.data.opening import Data
from ela_probe.errors import OptionError
from ela_probe.pipeline.analyze import analyze_checkpoint
from ela_probe.pruning.merging import merged_plan
from ela_probe.pruning.plan import Constraints, SkipPlan
from ela_probe.pruning.planners import make_plan
from ela_probe.pruning.prune import prune


def plan_in_rounds(
    checkpoint: Checkpoint,
    analysis: Analysis,
    *,
    rounds: int,
    skip: float = 0.3,
    action: Literal["skip", "affine"] | None = None,
    constraints: Constraints = Constraints(),
    data: Data | None = None,
    limit: int | None = None,
    device: str = "auto",
    progress: bool = True,
) -> SkipPlan:
    """A plan by damage that is measured again on the partly pruned model after every round.

    Damages do not quite add up; this way the later choices and their stand-ins are made for the
    network that the earlier ones leave. The predicted loss change is the sum over the rounds.

    Args:
        analysis: of the checkpoint, with damage: the first round is planned from it.
        rounds: how many; each adds an equal part of the retrievals to skip.
        skip, action, constraints: as `make_plan` takes them, without `max_run`.
        limit: samples of each new measurement, of the split that `analysis` was measured on.

    Raises:
        PlanError: as `make_plan`. OptionError: `rounds` below 1, or a `max_run`.
    """
    if rounds < 1 or constraints.max_run is not None:
        raise OptionError(
            f"got rounds={rounds} and max_run={constraints.max_run}; expected at least one round, "
            "and no limit of skipped retrievals in a row: rounds can't keep it"
        )
    whole = sum(len(part.stage.sites) for part in analysis.stages)
    count = math.floor(skip * whole + 0.5)
    current, plans = analysis, list[SkipPlan]()
    merged = make_plan(analysis, skip=0.0, planner="damage", constraints=constraints)
    for number in range(1, rounds + 1):
        due = round(count * number / rounds) - len(merged.skipped)
        if due > 0:
            left = sum(len(part.stage.sites) for part in current.stages)
            plans.append(
                make_plan(
                    current, skip=due / left, planner="damage", action=action,
                    constraints=constraints,
                )
            )  # fmt: skip
            merged = merged_plan(analysis, plans, constraints)
        if number < rounds and due > 0:
            smaller = Checkpoint(
                path=checkpoint.path, model=prune(checkpoint.model, merged),
                header=checkpoint.header, sha256=checkpoint.sha256,
            )  # fmt: skip
            split = analysis.provenance.split or "train"
            current = analyze_checkpoint(
                smaller, data=data, split=split, limit=limit, device=device, progress=progress,  # type: ignore[arg-type]
            )  # fmt: skip
    return merged

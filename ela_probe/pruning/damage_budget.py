"""The actions of least predicted damage, for a number of sites or for a loss, exactly.

The damages of sites are added, although they do not quite add up: in a large plan the later
removals meet another network than the one that was measured (`--rounds` measures again).
"""

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from ela_probe.analysis.result import Analysis
from ela_probe.errors import PlanError
from ela_probe.pruning.plan import Constraints
from ela_probe.pruning.site_budget import Positions, combined_optima
from ela_probe.sites import Action
from ela_probe.system.arrays import Floats


class Choice(NamedTuple):
    """The cheapest action at a site, and its damage in nats; inf where no action is known."""

    action: Action
    damage: float


def cheapest_actions(analysis: Analysis, allowed: Collection[Action]) -> list[list[Choice]]:
    """For each site of each stage its cheapest allowed action. The first can only be `affine`."""
    result = []
    for part in analysis.stages:
        choices = []
        for t in range(len(part.stage.sites)):
            found = None if part.damage is None else part.damage.cheapest(t, allowed)
            choices.append(
                Choice("skip", math.inf) if found is None else Choice(found[0], found[1].mean)
            )
        result.append(choices)
    return result


def within_damage(
    choices: Sequence[Sequence[Choice]],
    *,
    budget: int | None = None,
    max_loss: float | None = None,
    constraints: Constraints = Constraints(),
    must: Sequence[Positions] | None = None,
    only: Sequence[Positions] | None = None,
) -> list[tuple[int, ...]]:
    """The sites of all stages together whose removal has the least total damage.

    Args:
        choices: as `cheapest_actions` returns them.
        budget: so many sites; or
        max_loss: as many sites as possible for a total damage of at most so many nats.
        must: per stage the positions that are removed in any case; none by default.
        only: per stage the only positions that may be removed; all by default.

    Returns: per stage the positions in ascending order.

    Raises:
        PlanError: the guards and the actions allow fewer sites than `budget`.
    """
    # A kept site stands before the first one, so that the first may be chosen too.
    shifted = constraints.model_copy(update={"min_keep": constraints.min_keep + 1})
    charges: list[Floats] = []
    may: list[Positions] = []
    for s, stage in enumerate(choices):
        prices = np.array([0.0, *(choice.damage for choice in stage)])
        may.append(
            [
                t + 1
                for t in range(len(stage))
                if math.isfinite(prices[t + 1]) and (only is None or t in only[s])
            ]
        )
        charges.append(np.tile(np.where(np.isfinite(prices), prices, 0.0), (len(prices), 1)))
    shifted_must = None if must is None else [[t + 1 for t in stage] for stage in must]
    best = combined_optima(charges, shifted, must=shifted_must, may=may)
    count = sum(map(len, choices))
    if max_loss is not None:
        budget = max((k for k, (damage, _) in best.items() if damage <= max_loss), default=0)
    assert budget is not None
    if budget not in best:
        unknown = sum(not math.isfinite(choice.damage) for stage in choices for choice in stage)
        raise PlanError(
            f"cannot skip {budget} of {count} retrievals: {unknown} have no action whose damage is "
            f"known, and max_run={constraints.max_run}, min_keep={constraints.min_keep} allow "
            f"{max(best)} at most; ask for a share of {math.floor(100 * max(best) / count) / 100} "
            "or less, or loosen the guards"
        )
    return [tuple(t - 1 for t in stage) for stage in best[budget][1]]

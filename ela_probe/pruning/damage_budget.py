"""The actions of least predicted damage, for a number of sites or for a loss, exactly.

The damages of sites are added, although they do not quite add up: in a large plan the later
removals meet another network than the one that was measured (`--rounds` measures again).
"""

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from ela_probe.analysis.result import Analysis
from ela_probe.pruning.plan import Constraints
from ela_probe.pruning.site_budget import combined_optima, within_budget
from ela_probe.sites import Action
from ela_probe.system.arrays import Floats


class Choice(NamedTuple):
    """The cheapest action at a site, and its damage in nats; inf where no action is known."""

    action: Action
    damage: float


def cheapest_actions(analysis: Analysis, allowed: Collection[Action]) -> list[list[Choice]]:
    """For each site of each stage its cheapest allowed action.

    The first of a stage can only be `affine`, unless the stage's kind is in OPTIONAL.
    """
    result = []
    for part in analysis.stages:
        choices = []
        for t in range(len(part.stage.sites)):
            found = (
                None
                if part.damage is None
                else part.damage.cheapest(t, allowed, kind=part.stage.kind)
            )
            choices.append(
                Choice("skip", math.inf) if found is None else Choice(found[0], found[1].mean)
            )
        result.append(choices)
    return result


def damage_charges(choices: Sequence[Sequence[Choice]]) -> list[Floats]:
    """Per stage the charges that `within_budget` takes: the damages, whatever is kept before."""
    return [np.tile([choice.damage for choice in stage], (len(stage), 1)) for stage in choices]


def within_damage(
    choices: Sequence[Sequence[Choice]],
    *,
    budget: int | None = None,
    max_loss: float | None = None,
    constraints: Constraints = Constraints(),
) -> list[tuple[int, ...]]:
    """The sites of all stages together whose removal has the least total damage.

    Args:
        choices: as `cheapest_actions` returns them.
        budget: so many sites; or
        max_loss: as many sites as possible for a total damage of at most so many nats.

    Returns: per stage the positions in ascending order.

    Raises:
        PlanError: the guards and the actions allow fewer sites than `budget`.
    """
    charges = damage_charges(choices)
    may = [range(len(stage)) for stage in choices]
    if max_loss is None:
        assert budget is not None
        return within_budget(charges, budget, constraints, may=may)
    best = combined_optima(charges, constraints, may=may)
    return best[max(k for k, (damage, _) in best.items() if k == 0 or damage <= max_loss)][1]

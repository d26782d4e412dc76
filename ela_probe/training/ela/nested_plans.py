"""Nested plans: each skips the sites of the plan before it, and more.

By a ramp every step proposes anew which sites to skip in the end, with hysteresis, and removes
those of the proposal that are due by then. By a loss or a time every step removes what is allowed
by then; only with `regrow` may it also bring back a removed site.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ela_probe.analysis.result import Analysis
from ela_probe.errors import PlanError
from ela_probe.pruning.damage_budget import cheapest_actions, damage_charges
from ela_probe.pruning.plan import Constraints, SkipPlan
from ela_probe.pruning.planners import SkipAction, as_plan, skip_decisions
from ela_probe.pruning.site_budget import charge_matrices, combined_optima, within_budget
from ela_probe.pruning.time_budget import ACTIONS, Charges, whole_frontier
from ela_probe.sites import Stage
from ela_probe.system.arrays import Floats
from ela_probe.training.ela.config import Planner

if TYPE_CHECKING:
    from ela_probe.pruning.cost_model import CostModel

Names = frozenset[str]
KEPT = ("quantile", "score", "damage", "stand_in")


def most_removable(
    stages: Sequence[Stage], constraints: Constraints, *, action: SkipAction, by_time: bool
) -> int:
    """The most retrievals that the constraints allow to remove, by damage.

    by_time: whether costs decide too, which know no removal of a stage's first retrieval.
    """
    charges = [np.zeros((len(s.sites),) * 2) for s in stages]
    first = 0 if action == "affine" and not by_time else 1
    may = [range(first, len(s.sites)) for s in stages]
    return max(combined_optima(charges, constraints, may=may))


def skip_count(share: float, stages: Sequence[Stage], constraints: Constraints) -> int:
    """The number of retrievals in a share of all, rounded.

    Raises:
        PlanError: the number is 0, or more than the constraints allow.
    """
    sites = sum(len(stage.sites) for stage in stages)
    count = math.floor(share * sites + 0.5)
    if count == 0:
        raise PlanError(
            f"a share of {share:g} of {sites} retrievals is less than one of them; "
            f"ask for {math.ceil(50 / sites) / 100:g} or more"
        )
    within_budget([np.zeros((len(s.sites),) * 2) for s in stages], count, constraints)
    return count


def proposal(
    analysis: Analysis,
    count: int,
    *,
    planner: Planner,
    action: SkipAction,
    before: Names,
    removed: Names,
    hysteresis: float,
    constraints: Constraints,
) -> Names:
    """The sites to skip in the end: those of least total charge, with a discount for `before`.

    Args:
        analysis: the averages so far.
        count: number of sites to skip.
        planner, action: what a site is charged.
        before: the last proposal.
        removed: the sites that were removed already; they are part of every proposal.
        hysteresis: the discount as a fraction. A site replaces one of `before` only if it is
            better by more.
        constraints: guards of the plan.
    """
    names = site_names(analysis)
    charges = charges_of(analysis, planner, action)
    for charge, stage in zip(charges, names, strict=True):
        charge *= 1 - hysteresis * np.sign(charge) * [name in before for name in stage]
    # Only a stand-in can take the place of a stage's first retrieval, and only damage prices it.
    may = [range(0 if planner == "damage" else 1, len(stage)) for stage in names]
    must = positions_by_stage(removed, names)
    return names_at(within_budget(charges, count, constraints, must=must, may=may), names)


def due_part(
    proposed: Names,
    analysis: Analysis,
    count: int,
    *,
    planner: Planner,
    action: SkipAction,
    removed: Names,
    constraints: Constraints,
) -> Names:
    """The `count` sites of a proposal of least total charge, including all of `removed`."""
    names = site_names(analysis)
    chosen = within_budget(
        charges_of(analysis, planner, action),
        count,
        constraints,
        must=positions_by_stage(removed, names),
        may=positions_by_stage(proposed, names),
    )
    return names_at(chosen, names)


def within_goal(
    analysis: Analysis,
    *,
    action: SkipAction,
    removed: Names,
    most: int,
    constraints: Constraints,
    loss: float | None = None,
    time: float | None = None,
    costs: "CostModel | None" = None,
    rises: Mapping[str, float] | None = None,
) -> Names:
    """The sites to skip, `removed` among them, so that the others cost at most `loss` together.

    Without costs as many as possible, else those that save most time, or, where `time` is reached
    for less damage, those of the least damage that reach it. What was removed costs nothing more.

    Args:
        rises: what the removed sites cost more, in nats, than when they were removed. With it a
            removed site is one like the others, and may be left out of the result. None: all
            removed sites are skipped.
        most: number of sites to skip at most, `removed` included.
        loss: in nats; None: any.
        time, costs: the share of the unpruned step's time to reach, and the time of each action.
            Where it can't be reached, the fastest plan is taken.

    Raises:
        PlanError: the costs were measured on another model.
    """
    names = site_names(analysis)
    done = [
        {t: (rises or {}).get(name, 0.0) for t, name in enumerate(stage) if name in removed}
        for stage in names
    ]
    must = [frozenset(stage) if rises is None else frozenset[int]() for stage in done]
    allowed = math.inf if loss is None else loss
    if costs is None or time is None:
        charges = damage_charges(cheapest_actions(analysis, [action]))
        for charge, stage in zip(charges, done, strict=True):
            charge[:, list(stage)] = list(stage.values())
        best = combined_optima(charges, constraints, must=must, may=[range(len(s)) for s in names])
        counts = [k for k, (damage, _) in best.items() if k <= most and damage <= allowed]
        return names_at(best[max(counts)][1], names) if counts else removed
    costs.check_sites([part.stage for part in analysis.stages])
    frontier = whole_frontier(
        costs,
        [
            Charges.by_damage(part).only(action, removed=stage, final=rises is None)
            for part, stage in zip(analysis.stages, done, strict=True)
        ],
        constraints,
    )
    full, base = costs.predict({}), costs.base.value
    is_changed = frontier.actions != ACTIONS.index("keep")
    possible = np.flatnonzero((frontier.charges <= allowed) & (is_changed.sum(axis=1) <= most))
    if not len(possible):
        return removed
    reaching = possible[base + frontier.seconds[possible] <= time * full * (1 + 1e-9)]
    chosen = is_changed[reaching[-1] if len(reaching) else possible[0]]
    flat = [name for stage in names for name in stage]
    return frozenset(name for name, changed in zip(flat, chosen, strict=True) if changed)


def plan_skipping(
    skipped: Names,
    analysis: Analysis,
    *,
    planner: str,
    action: SkipAction,
    constraints: Constraints,
    epoch: int,
    last: SkipPlan | None,
) -> SkipPlan:
    """The plan that skips these sites.

    Args:
        skipped: the names of the sites.
        analysis: the averages so far.
        planner, action, constraints: noted in the plan.
        epoch: number of epochs done, noted in the plan.
        last: the plan before. A removed site keeps what it had when it was removed: quantile,
            score, damage and stand-in.
    """
    decided = [
        skip_decisions(part, sorted(positions), action)
        for positions, part in zip(
            positions_by_stage(skipped, site_names(analysis)), analysis.stages, strict=True
        )
    ]
    plan = as_plan(
        analysis, decided, target=analysis.target, constraints=constraints, planner=planner
    )
    known = {} if last is None else {s.name: s for stage in last.stages for s in stage.sites}
    stages = []
    for stage in plan.stages:
        sites = tuple(
            site.model_copy(update={name: getattr(old, name) for name in KEPT})
            if site.action != "keep"
            and (old := known.get(site.name)) is not None
            and old.action != "keep"
            else site
            for site in stage.sites
        )
        stages.append(stage.model_copy(update={"sites": sites}))
    origin = plan.origin.model_copy(update={"epoch": epoch})
    return plan.model_copy(update={"stages": tuple(stages), "origin": origin})


def charges_of(analysis: Analysis, planner: Planner, action: SkipAction) -> list[Floats]:
    """The planner's charges by stage; the highest for a stage without a fit, so without scores."""
    if planner == "damage":
        return damage_charges(cheapest_actions(analysis, [action]))
    divergences = [part.divergences["kl"].copy() for part in analysis.stages]
    return charge_matrices(analysis, planner, divergences, analysis.target, 0.0, 0)


def site_names(analysis: Analysis) -> list[list[str]]:
    """Per stage the names of its sites."""
    return [[site.name for site in part.stage.sites] for part in analysis.stages]


def positions_by_stage(
    chosen: Collection[str], names: Sequence[Sequence[str]]
) -> list[frozenset[int]]:
    """The positions of the chosen names in each stage."""
    return [frozenset(t for t, n in enumerate(stage) if n in chosen) for stage in names]


def names_at(chosen: Sequence[Collection[int]], names: Sequence[Sequence[str]]) -> Names:
    """The inverse of `positions_by_stage`."""
    return frozenset(
        stage[t] for stage, positions in zip(names, chosen, strict=True) for t in positions
    )


def draw_positions(
    scores: Floats, constraints: Constraints, random: np.random.Generator
) -> list[int]:
    """Positions in a stage, each drawn with the probability of its score if the guards allow it.

    One number is drawn for every site. The first site is never chosen, nor one without a score
    (NaN).
    """
    numbers = random.random(len(scores))
    most = len(scores) - min(constraints.min_keep, len(scores))
    chosen: list[int] = []
    run = 0
    for t in range(1, len(scores)):
        allowed = constraints.max_run is None or run < constraints.max_run
        if numbers[t] < scores[t] and allowed and len(chosen) < most:
            chosen.append(t)
            run += 1
        else:
            run = 0
    return chosen

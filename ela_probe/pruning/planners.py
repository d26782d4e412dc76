"""Making a plan: which retrievals of an analysed model to skip, by any of the planners.

The planners by divergence are in `pruning.site_budget`, the planner `damage` is in
`pruning.damage_budget`, and the planner `cost` for a time in `pruning.time_budget`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from ela_probe.analysis.damage import REMOVING
from ela_probe.analysis.ebqm import Target, skip_scores
from ela_probe.analysis.result import Analysis, StageAnalysis
from ela_probe.errors import PlanError
from ela_probe.pruning.damage_budget import Choice, cheapest_actions, within_damage
from ela_probe.pruning.plan import (
    Constraints,
    Estimate,
    FitSummary,
    Origin,
    SkipPlan,
    encode_stand_in,
)
from ela_probe.pruning.site_budget import below_threshold, charge_matrices, within_budget
from ela_probe.pruning.time_budget import Decision, within_time
from ela_probe.sites import OPTIONAL, Action, drop_unread, has_divergences
from ela_probe.system.arrays import Floats
from ela_probe.system.numbers import finite_or_none

if TYPE_CHECKING:
    from ela_probe.pruning.cost_model import CostModel

Planner = Literal[
    "damage", "budget", "cost", "score", "threshold", "random", "alternate", "deepest"
]
PLANNERS: tuple[str, ...] = get_args(Planner)
# They charge divergences, or scores that come from them.
BY_DIVERGENCE = ("budget", "cost", "score", "threshold")
Measure = Literal["kl", "shape", "js"]
SkipAction = Literal["skip", "drop", "recur", "affine"]


def make_plan(
    analysis: Analysis,
    *,
    skip: float = 0.3,
    planner: Planner | None = None,
    threshold: float | None = None,
    max_loss: float | None = None,
    costs: "CostModel | None" = None,
    time: float | None = None,
    action: SkipAction | None = None,
    measure: Measure = "kl",
    concentration: float = 4.0,
    constraints: Constraints = Constraints(),
    seed: int = 0,
) -> SkipPlan:
    """A plan that skips a share of the retrievals, or one that takes a share of the time.

    Args:
        skip: the share of all retrievals to skip, rounded to a whole number of retrievals. The
            planners `threshold` and `cost` use it only as the mean of the skip scores' target.
        planner: `damage` (least predicted loss change, exact; the default where damage was
            measured), `budget` (least total divergence, exact; else the default), `cost` (the least
            charge at which a training step takes `time` of the unpruned step's time, predicted from
            `costs`; it chooses an action for each site), `score` (highest EBQM skip scores),
            `threshold` (greedy: skip each site whose divergence from the last kept site is below
            `threshold` nats), or a baseline: `random`, `alternate`, `deepest`.
        max_loss: for the planner `damage`, instead of `skip`: as many retrievals as possible for a
            predicted loss change of at most so many nats.
        costs, time: the time of each action, as `measure_costs` returns it, and the share of the
            unpruned step's time to reach: for the planners `cost` and `damage`, instead of `skip`.
        action: the action of a skipped site; by default the cheaper of `skip` and `affine` with
            the planner `damage`, and `skip` with the others. `skip` becomes `drop` where no later
            retrieval reads the site's source. `affine` needs an analysis with stand-ins. The
            planner `cost` chooses the actions itself.
        measure: the divergence that is charged. The planner `cost` has charges of its own.
        concentration: κ of the target distribution of the skip scores.
        seed: of the planner `random`.

    Raises:
        PlanError: the share is out of range or more than the guards allow, no plan takes so
            little time, the costs were measured on another model, an argument is missing, or a
            planner that charges divergences is asked about a stage of `signed` weights.
    """
    if planner is None:
        planner = "damage" if analysis.has_damage else "budget" if costs is None else "cost"
    _check_arguments(
        analysis, planner, skip=skip, threshold=threshold, max_loss=max_loss, costs=costs,
        time=time, action=action, measure=measure,
    )  # fmt: skip
    target = Target(skip=min(max(skip, 0.01), 0.99), concentration=concentration)
    count = math.floor(skip * sum(len(part.stage.sites) for part in analysis.stages) + 0.5)
    if costs is not None and time is not None:
        decided = within_time(analysis, costs, time, constraints, by_damage=planner == "damage")
    elif planner == "damage":
        choices = cheapest_actions(analysis, REMOVING if action is None else [action])
        removed = within_damage(
            choices,
            budget=count if max_loss is None else None,
            max_loss=max_loss,
            constraints=constraints,
        )
        decided = [
            damage_decisions(part, {t: own[t] for t in positions})
            for part, positions, own in zip(analysis.stages, removed, choices, strict=True)
        ]
    else:
        charges = [_charges(part, measure) for part in analysis.stages]
        if threshold is not None:
            chosen = [below_threshold(charge, threshold, constraints) for charge in charges]
        else:
            matrices = charge_matrices(analysis, planner, charges, target, skip, seed)
            may = [skippable(part) for part in analysis.stages]
            chosen = within_budget(matrices, count, constraints, may=may)
        decided = [
            skip_decisions(part, skipped, action or "skip", measure=measure)
            for part, skipped in zip(analysis.stages, chosen, strict=True)
        ]
    return as_plan(
        analysis,
        decided,
        target=target,
        constraints=constraints,
        planner=planner,
        measure=measure,
        seed=seed,
        costs=costs,
        time=time,
        max_loss=max_loss,
    )


def _check_arguments(
    analysis: Analysis,
    planner: str,
    *,
    skip: float,
    threshold: float | None,
    max_loss: float | None,
    costs: "CostModel | None",
    time: float | None,
    action: str | None,
    measure: str,
) -> None:
    """Raise PlanError where the arguments of `make_plan` don't go together."""
    if planner not in PLANNERS:
        raise PlanError(f"no planner is called {planner!r}; expected one of {', '.join(PLANNERS)}")
    check_has_charges(analysis, planner)
    if not 0 <= skip < 1:
        raise PlanError(f"cannot skip a share of {skip}; expected at least 0 and less than 1")
    if (threshold is None) == (planner == "threshold"):
        raise PlanError("the planner 'threshold' needs a threshold in nats, and no other takes one")
    timed = costs is not None or time is not None
    if timed != (planner == "cost") and not (timed and planner == "damage"):
        raise PlanError(
            "the planner 'cost' needs costs, measured by `ela-probe costs`, and a time such as 0.8 "
            "of the unpruned step's; beside it only the planner 'damage' takes them"
        )
    if timed and (costs is None or time is None):
        raise PlanError(
            "a plan for a time needs costs, measured by `ela-probe costs`, and a time such as 0.8 "
            "of the unpruned step's; got one without the other"
        )
    if timed and (max_loss is not None or action is not None):
        raise PlanError(
            "a plan for a time chooses the actions, and its loss follows; leave out max_loss and "
            "action, or costs and time"
        )
    if planner == "cost" and (action, measure) != (None, "kl"):
        raise PlanError(
            "the planner 'cost' chooses the actions and has charges of its own; leave out action "
            "and measure, or choose another planner"
        )
    if max_loss is not None and planner != "damage":
        raise PlanError(
            f"got max_loss={max_loss} for the planner {planner!r}; only the planner 'damage' "
            "predicts a loss"
        )
    if planner == "damage" and not analysis.has_damage:
        raise PlanError(
            "the planner 'damage' needs an analysis with damage; run `ela-probe analyze` on data "
            "with labels, without --no-damage, or choose another planner"
        )
    if planner == "damage" and (action not in (None, "skip", "affine") or measure != "kl"):
        raise PlanError(
            f"got action={action!r} and measure={measure!r} for the planner 'damage'; expected "
            "the action 'skip', 'affine' or none, and no measure"
        )
    if action == "affine" and not any(
        value is not None
        for part in analysis.stages
        if part.damage is not None
        for value in part.damage.stand_ins
    ):
        raise PlanError(
            "the action 'affine' needs an analysis with stand-ins; run `ela-probe analyze` on data "
            "with labels, without --no-damage, or choose another action"
        )


def check_has_charges(analysis: Analysis, planner: str) -> None:
    """Raise PlanError where a planner charges divergences that a stage doesn't have."""
    signed = [p.stage.name for p in analysis.stages if not has_divergences(p.stage.kind)]
    if signed and planner in BY_DIVERGENCE:
        raise PlanError(
            f"the planner {planner!r} charges divergences, and {signed[0]} has none: its weights "
            "are signed, so no distribution; use the planner 'damage', on an analysis of data with "
            "labels, or a baseline (random, alternate, deepest)"
        )


def skippable(part: StageAnalysis) -> range:
    """The positions of a stage that a planner may skip: all but the first, where that is needed."""
    return range(0 if part.stage.kind in OPTIONAL else 1, len(part.stage.sites))


def _charges(part: StageAnalysis, measure: Measure) -> Floats:
    """The divergences of a stage's pairs, [T, T]; zeros where it has none and none is charged."""
    sites = len(part.stage.sites)
    return part.divergences.get(measure, np.zeros((sites, sites)))


def as_plan(
    analysis: Analysis,
    decided: Sequence[Sequence[Decision]],
    *,
    target: Target,
    constraints: Constraints,
    planner: str,
    measure: Measure = "kl",
    seed: int | None = None,
    costs: "CostModel | None" = None,
    time: float | None = None,
    max_loss: float | None = None,
) -> SkipPlan:
    """The plan of what was decided for every site of every stage, with the figures behind it."""
    stages = [part.stage for part in analysis.stages]
    actions: dict[str, Action] = {}
    figures: dict[str, dict[str, Any]] = {}
    for part, decisions in zip(analysis.stages, decided, strict=True):
        scores = skip_scores(part.quantiles, target)
        for t, (site, decision) in enumerate(zip(part.stage.sites, decisions, strict=True)):
            actions[site.name] = decision.action
            figures[site.name] = figures_of(part, t, decision.reference, float(scores[t]))
            figures[site.name] |= damage_of(part, t, decision.action)
    damages = [figures[name]["damage"] for name, action in actions.items() if action != "keep"]
    predicted = None
    if analysis.has_damage and None not in damages:
        predicted = Estimate.total(damages)
    source = analysis.provenance
    return SkipPlan.for_actions(
        stages,
        actions,
        figures=figures,
        fits={
            part.stage.name: None if part.fit is None else FitSummary.model_validate(vars(part.fit))
            for part in analysis.stages
        },
        target=target,
        constraints=constraints,
        origin=Origin(
            model=source.model,
            model_args=source.model_args,
            checkpoint_sha256=source.checkpoint_sha256,
            data=source.data,
            split=source.split,
            samples=(
                max(part.samples for part in analysis.stages) if source.sampling else source.samples
            ),
            planner=planner,
            measure=measure,
            seed=seed if planner == "random" else None,
            ela_probe=source.versions.get("ela-probe", "unknown"),
            time_budget=time,
            predicted_ratio=None if costs is None else costs.predict(actions) / costs.predict({}),
            predicted_seconds=None if costs is None else costs.predict(actions),
            timed_on=None if costs is None else costs.machine.device_name,
            max_loss=max_loss,
            predicted_loss=predicted,
        ),
        charge=sum(decision.charge for decisions in decided for decision in decisions),
    )


def skip_decisions(
    part: StageAnalysis,
    skipped: Sequence[int],
    action: SkipAction,
    *,
    measure: Measure = "kl",
) -> list[Decision]:
    """The decisions for a stage of which a planner skips these positions.

    Args:
        action: of the skipped sites; `drop` in place of `skip` where nothing reads the source.
        measure: the divergence from the last kept site that each skipped site is charged with.
    """
    charge = _charges(part, measure)
    return [
        decision
        if decision.action == "keep"
        else decision._replace(charge=float(charge[decision.reference or 0, t]))
        for t, decision in enumerate(_decisions(part, dict.fromkeys(skipped, action)))
    ]


def damage_decisions(part: StageAnalysis, chosen: Mapping[int, Choice]) -> list[Decision]:
    """The decisions for a stage of which the planner `damage` removes these positions."""
    decided = _decisions(part, {t: choice.action for t, choice in chosen.items()})
    return [
        decision._replace(charge=chosen[t].damage) if t in chosen else decision
        for t, decision in enumerate(decided)
    ]


def _decisions(part: StageAnalysis, changes: Mapping[int, Action]) -> list[Decision]:
    """Decisions without charges; a changed site is compared with the last kept one before it."""
    actions = drop_unread(
        [changes.get(t, "keep") for t in range(len(part.stage.sites))],
        carried_over=part.stage.carried_over,
    )
    decided: list[Decision] = []
    kept: int | None = None
    for t, action in enumerate(actions):
        if action == "keep":
            decided.append(Decision("keep", t - 1 if t else None, 0.0))
            kept = t
        else:
            decided.append(Decision(action, kept, 0.0))
    return decided


def damage_of(part: StageAnalysis, t: int, action: Action) -> dict[str, Any]:
    """What a plan records of an action at site t: its damage, and its stand-in.

    Raises:
        PlanError: `affine` at a site without a stand-in.
    """
    estimate = None if part.damage is None else part.damage.of(t, action)
    damage = (
        None if estimate is None else Estimate(mean=estimate.mean, se=finite_or_none(estimate.se))
    )
    if action != "affine":
        return {"damage": damage}
    stand_in = None if part.damage is None else part.damage.stand_ins[t]
    if stand_in is None:
        raise PlanError(
            f"{part.stage.sites[t].name} has no stand-in, so it can't have the action 'affine'; "
            "choose another planner or action"
        )
    return {"damage": damage, "stand_in": encode_stand_in(stand_in)}


def figures_of(part: StageAnalysis, t: int, reference: int | None, score: float) -> dict[str, Any]:
    """What a plan records of site t besides its action. reference: the position compared with."""

    def estimate(measure: str) -> Estimate | None:
        if reference is None or measure not in part.divergences:
            return None
        return Estimate(
            mean=float(part.divergences[measure][reference, t]),
            se=finite_or_none(part.divergences[f"{measure}_se"][reference, t]),
        )

    return {
        "reference": None if reference is None else part.stage.sites[reference].name,
        "kl": estimate("kl"),
        "shape": estimate("shape"),
        "mass": estimate("mass"),
        "l2": estimate("l2"),
        "cosine": estimate("cosine"),
        "quantile": finite_or_none(part.quantiles[t]),
        "score": finite_or_none(score),
    }

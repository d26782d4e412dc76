"""Making a plan: which retrievals of an analysed model to skip, by any of the planners.

The planners for a number of retrievals are in `pruning.site_budget`, the planner `cost` for a time
is in `pruning.time_budget`.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from ela_probe.analysis.ebqm import Target, skip_scores
from ela_probe.analysis.result import Analysis, StageAnalysis
from ela_probe.errors import PlanError
from ela_probe.pruning.plan import Constraints, Estimate, FitSummary, Origin, SkipPlan
from ela_probe.pruning.site_budget import below_threshold, charge_matrices, within_budget
from ela_probe.pruning.time_budget import Decision, within_time
from ela_probe.sites import Action, drop_unread
from ela_probe.system.numbers import finite_or_none

if TYPE_CHECKING:
    from ela_probe.pruning.cost_model import CostModel

Planner = Literal["budget", "cost", "score", "threshold", "random", "alternate", "deepest"]
PLANNERS: tuple[str, ...] = get_args(Planner)
Measure = Literal["kl", "shape", "js"]


def make_plan(
    analysis: Analysis,
    *,
    skip: float = 0.3,
    planner: Planner = "budget",
    threshold: float | None = None,
    costs: "CostModel | None" = None,
    time: float | None = None,
    action: Literal["skip", "drop", "recur"] = "skip",
    measure: Measure = "kl",
    concentration: float = 4.0,
    constraints: Constraints = Constraints(),
    seed: int = 0,
) -> SkipPlan:
    """A plan that skips a share of the retrievals, or one that takes a share of the time.

    Args:
        skip: the share of all retrievals to skip, rounded to a whole number of retrievals. The
            planners `threshold` and `cost` use it only as the mean of the skip scores' target.
        planner: `budget` (least total divergence, exact), `cost` (the least charge at which a
            training step takes `time` of the unpruned step's time, predicted from `costs`; it
            chooses an action for each site), `score` (highest EBQM skip scores), `threshold`
            (greedy: skip each site whose divergence from the last kept site is below `threshold`
            nats), or a baseline: `random`, `alternate`, `deepest`.
        costs: the time of each action, as `measure_costs` returns it.
        action: the action of a skipped site. `skip` becomes `drop` where no later retrieval reads
            the site's source. The planner `cost` chooses the actions itself.
        measure: the divergence that is charged. The planner `cost` has charges of its own.
        concentration: κ of the target distribution of the skip scores.
        seed: of the planner `random`.

    Raises:
        PlanError: the share is out of range or more than the guards allow, no plan takes so
            little time, the costs were measured on another model, or an argument is missing.
    """
    if planner not in PLANNERS:
        raise PlanError(f"no planner is called {planner!r}; expected one of {', '.join(PLANNERS)}")
    if not 0 <= skip < 1:
        raise PlanError(f"cannot skip a share of {skip}; expected at least 0 and less than 1")
    if (threshold is None) == (planner == "threshold"):
        raise PlanError("the planner 'threshold' needs a threshold in nats, and no other takes one")
    if any((given is not None) != (planner == "cost") for given in (costs, time)):
        raise PlanError(
            "the planner 'cost' needs costs, measured by `ela-probe costs`, and a time such as 0.8 "
            "of the unpruned step's; no other planner takes them"
        )
    if planner == "cost" and (action, measure) != ("skip", "kl"):
        raise PlanError(
            "the planner 'cost' chooses the actions and has charges of its own; leave out action "
            "and measure, or choose another planner"
        )
    target = Target(skip=min(max(skip, 0.01), 0.99), concentration=concentration)
    if costs is not None and time is not None:
        decided = within_time(analysis, costs, time, constraints)
    else:
        charges = [part.divergences[measure] for part in analysis.stages]
        if threshold is not None:
            chosen = [below_threshold(charge, threshold, constraints) for charge in charges]
        else:
            sites = sum(len(part.stage.sites) for part in analysis.stages)
            matrices = charge_matrices(analysis, planner, charges, target, skip, seed)
            chosen = within_budget(matrices, math.floor(skip * sites + 0.5), constraints)
        decided = [
            skip_decisions(part, skipped, action, measure=measure)
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
    )


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
        ),
        charge=sum(decision.charge for decisions in decided for decision in decisions),
    )


def skip_decisions(
    part: StageAnalysis,
    skipped: Sequence[int],
    action: Literal["skip", "drop", "recur"],
    *,
    measure: Measure = "kl",
) -> list[Decision]:
    """The decisions for a stage of which a planner skips these positions.

    Args:
        action: of the skipped sites; `drop` in place of `skip` where nothing reads the source.
        measure: the divergence from the last kept site that each skipped site is charged with.
    """
    charge = part.divergences[measure]
    actions = drop_unread(
        [action if t in skipped else "keep" for t in range(len(charge))],
        carried_over=part.stage.carried_over,
    )
    decided, kept = [Decision("keep", None, 0.0)], 0
    for t in range(1, len(charge)):
        if t in skipped:
            decided.append(Decision(actions[t], kept, float(charge[kept, t])))
        else:
            decided.append(Decision("keep", t - 1, 0.0))
            kept = t
    return decided


def figures_of(part: StageAnalysis, t: int, reference: int | None, score: float) -> dict[str, Any]:
    """What a plan records of site t besides its action. reference: the position compared with."""

    def estimate(measure: str) -> Estimate | None:
        if reference is None:
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
        "quantile": finite_or_none(part.quantiles[t]),
        "score": finite_or_none(score),
    }

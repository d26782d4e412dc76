"""How stable a plan is: how often each site keeps its action when the statistics are resampled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ela_probe.analysis.damage import SUMS, StageDamage
from ela_probe.analysis.measures import resampled
from ela_probe.analysis.result import Analysis, StageAnalysis
from ela_probe.errors import PlanError
from ela_probe.pruning.plan import SkipPlan
from ela_probe.pruning.planners import make_plan
from ela_probe.system.arrays import Floats

if TYPE_CHECKING:
    from ela_probe.pruning.cost_model import CostModel

# The planners whose plan depends on what was measured.
MEASURED_PLANNERS = ("damage", "budget", "cost", "score", "threshold")


def plan_stability(
    analysis: Analysis,
    plan: SkipPlan,
    *,
    resamples: int = 200,
    seed: int = 0,
    costs: CostModel | None = None,
    threshold: float | None = None,
) -> dict[str, float]:
    """By site name the share of resamples in which the site has the action that `plan` gives it.

    The planner that the plan names is run with the plan's settings on resampled statistics. Means
    (divergences, damages) are drawn from normal distributions with their standard errors, and the u
    of every site from its histogram (`analysis.measures.resampled`). It is assumed that the samples
    are independent and many, and that the errors of different pairs, sites and actions are
    independent of each other. In truth the same samples give all of them: their errors are often
    alike and cancel in comparisons, so that a plan is rather more stable than this says. What the
    costs of actions vary is left out.

    Args:
        analysis: the one that the plan was made from.
        resamples: how many plans are made. seed: of the random numbers.
        costs: the measured costs, for a plan that was made for a time.
        threshold: in nats, for the planner `threshold`; a plan does not record it.

    Raises:
        PlanError: the plan was made for other sites, by a planner that reads no statistics (random,
            alternate, deepest, manual), or it is not what its planner gives on this analysis; the
            costs or the threshold are missing; or a standard error is unknown.
        OptionError: fewer than 2 resamples.
    """
    plan.check_sites([part.stage for part in analysis.stages], found="the analysis")
    arguments = _arguments_of(plan, analysis, costs, threshold)
    kept = Counter[str]()
    for drawn in _resampled_analyses(analysis, resamples, seed=seed):
        actions = make_plan(drawn, **arguments).actions
        kept.update(name for name, action in plan.actions.items() if actions[name] == action)
    return {name: kept[name] / resamples for name in plan.actions}


def _arguments_of(
    plan: SkipPlan, analysis: Analysis, costs: CostModel | None, threshold: float | None
) -> dict[str, Any]:
    """What `make_plan` was given for a plan, tried on the analysis that it was made from."""
    origin = plan.origin
    if origin.planner not in MEASURED_PLANNERS:
        raise PlanError(
            f"the plan was made by {origin.planner!r}, which reads nothing of the analysis, so "
            f"that its stability means nothing; expected one of {', '.join(MEASURED_PLANNERS)}"
        )
    if origin.time_budget is not None and costs is None:
        raise PlanError(
            f"the plan was made for {origin.time_budget} of the unpruned step's time; give the "
            "costs that it was made with, from `ela-probe costs`"
        )
    if origin.planner == "threshold" and threshold is None:
        raise PlanError("a plan by threshold does not record it; give the threshold in nats")
    settings: dict[str, Any] = {
        "planner": origin.planner,
        "skip": len(plan.changes) / len(plan.actions),
        "threshold": threshold if origin.planner == "threshold" else None,
        "max_loss": origin.max_loss,
        "measure": origin.measure,
        "constraints": plan.constraints,
    }
    actions: set[Any] = {None}
    if origin.time_budget is not None:
        settings |= {"costs": costs, "time": origin.time_budget}
    else:
        actions |= set(plan.changes.values())
    if plan.target is not None:
        settings["concentration"] = plan.target.concentration
        if origin.planner in ("threshold", "cost", "score"):
            settings["skip"] = plan.target.skip
    for action in sorted(actions, key=str):
        if origin.planner == "damage" and action in ("drop", "recur"):
            continue
        arguments = {**settings, "action": action}
        if make_plan(analysis, **arguments).actions == plan.actions:
            return arguments
    raise PlanError(
        f"the planner {origin.planner!r} does not give this plan on this analysis; expected the "
        "analysis that it was made from, and a plan that was made in one round and not edited"
    )


def _resampled_analyses(analysis: Analysis, resamples: int, *, seed: int) -> Iterator[Analysis]:
    """The analysis with every mean and every histogram drawn anew."""
    generator = np.random.default_rng(seed)
    histograms = [
        resampled(part, resamples, seed=seed + index) for index, part in enumerate(analysis.stages)
    ]
    for parts in zip(*histograms, strict=True):
        drawn = tuple(
            replace(
                part,
                divergences=part.divergences | _drawn_divergences(part, generator),
                damage=None if part.damage is None else _drawn_damage(part.damage, generator),
            )
            for part in parts
        )
        yield replace(analysis, stages=drawn)


def _drawn_divergences(part: StageAnalysis, generator: np.random.Generator) -> dict[str, Floats]:
    found = {}
    for measure in part.measures:
        mean, error = part.divergences[measure], part.divergences[f"{measure}_se"]
        if part.stage.kind == "static":  # no sample changes them
            error = np.zeros_like(mean)
        if np.isnan(error).any():
            raise PlanError(
                f"{part.stage.name}: the standard errors are unknown, as {part.samples} sample "
                "was analysed; analyse more samples"
            )
        found[measure] = np.maximum(mean + error * generator.standard_normal(mean.shape), 0.0)
    return found


def _drawn_damage(damage: StageDamage, generator: np.random.Generator) -> StageDamage:
    """The same with other sums of c + ½nc²; the other sums, which no planner reads, stay."""
    n, total, square = damage.samples, SUMS.index("c + ½nc²"), SUMS.index("(c + ½nc²)²")
    sums = damage.sums.copy()
    means, squares = sums[..., total] / n, sums[..., square] / n
    errors = np.sqrt(np.maximum(squares - means**2, 0.0) / max(n - 1, 1))
    sums[..., total] += n * errors * generator.standard_normal(errors.shape)
    return replace(damage, sums=sums)

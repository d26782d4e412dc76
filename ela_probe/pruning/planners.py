"""Choosing which retrievals to skip, from the pairwise divergences of an analysis.

Every planner with a budget of sites is one exact dynamic programme over a charge matrix:
charge[i, t] is what skipping site t costs when site i is the last kept one before it. The baselines
differ from `budget` in the matrix only, so that all of them respect the same guards. The planner
`cost`, whose budget is time, is in pruning.time_budget.
"""

import itertools
import math
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from ela_probe.analysis.ebqm import Target, skip_scores
from ela_probe.analysis.result import Analysis, StageAnalysis
from ela_probe.errors import PlanError
from ela_probe.pruning.plan import Constraints, Estimate, FitSummary, Origin, SkipPlan
from ela_probe.pruning.time_budget import Decision, within_time
from ela_probe.sites import Action, drop_unread
from ela_probe.system.arrays import Floats

if TYPE_CHECKING:
    from ela_probe.pruning.cost_model import CostModel

Planner = Literal["budget", "cost", "score", "threshold", "random", "alternate", "deepest"]
PLANNERS: tuple[str, ...] = get_args(Planner)
Measure = Literal["kl", "shape", "js"]
Positions = Collection[int]


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
    """A plan that skips a share of the retrievals, or one for a share of the time.

    Args:
        skip: share of all retrievals not to form; the nearest whole number is taken. The planners
            `threshold` and `cost` take it only as the mean of the target of the skip scores.
        planner: `budget` (least total divergence, exact), `cost` (the least charge at which a
            training step takes `time` of the unpruned one's, by `costs`; an action for each site),
            `score` (highest EBQM skip scores), `threshold` (greedy: skip while the divergence
            from the last kept site is below `threshold` nats), or a baseline: `random`,
            `alternate`, `deepest`.
        costs: what the actions cost, as `measure_costs` finds it.
        action: what becomes of a skipped site. Sites that no later retrieval of their stage
            reads are dropped rather than skipped. The planner `cost` chooses by itself.
        measure: the divergence that is charged. The planner `cost` has charges of its own.
        concentration: κ of the target distribution of the skip scores.
        seed: of the `random` planner.

    Raises:
        PlanError: the share is out of range or more than the guards allow, no plan takes so
            little time, the costs are of another model, or a needed argument is missing.
    """
    if planner not in PLANNERS:
        raise PlanError(f"no planner is called {planner!r}; expected one of {', '.join(PLANNERS)}")
    if not 0 <= skip < 1:
        raise PlanError(f"cannot skip a share of {skip}; expected at least 0 and less than 1")
    if (threshold is None) == (planner == "threshold"):
        raise PlanError("the planner 'threshold' needs a threshold in nats, and no other takes one")
    if any((given is not None) != (planner == "cost") for given in (costs, time)):
        raise PlanError(
            "the planner 'cost' needs costs, as `ela-probe costs` measures them, and a time, as in "
            "0.8 of the unpruned; no other planner takes them"
        )
    if planner == "cost" and (action, measure) != ("skip", "kl"):
        raise PlanError(
            "the planner 'cost' chooses the actions and charges each by a measure of its own; "
            "leave out action and measure, or take another planner"
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
            skipping(part, skipped, action, measure=measure)
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


def within_budget(
    charges: Sequence[Floats],
    budget: int,
    constraints: Constraints = Constraints(),
    *,
    must: Sequence[Positions] | None = None,
    may: Sequence[Positions] | None = None,
) -> list[tuple[int, ...]]:
    """The sets of skipped sites, `budget` in all stages together, of least total charge.

    Args:
        charges: a [T, T] matrix a stage; charge[i, t], i < t, is paid for skipping site t after
            the last kept site i. Site 0 is always kept.
        must, may: per stage the positions that are skipped in any case, and those besides which
            none is; none and all of them by default.

    Returns: per stage the skipped positions, rising.

    Raises:
        PlanError: the guards allow fewer.
    """
    # best[k]: the least charge of skipping k sites of the stages so far, and which.
    best: dict[int, tuple[float, list[tuple[int, ...]]]] = {0: (0.0, [])}
    for s, charge in enumerate(charges):
        own = stage_optima(
            charge,
            constraints,
            must=() if must is None else must[s],
            may=None if may is None else may[s],
        )
        combined: dict[int, tuple[float, list[tuple[int, ...]]]] = {}
        for (k, (cost, sets)), (m, (added, skipped)) in itertools.product(
            best.items(), own.items()
        ):
            total = cost + added
            if k + m not in combined or total < combined[k + m][0]:
                combined[k + m] = (total, [*sets, skipped])
        best = combined
    if budget not in best:
        sites = sum(len(charge) for charge in charges)
        raise PlanError(
            f"cannot skip {budget} of {sites} retrievals: the first of every stage stays and "
            f"max_run={constraints.max_run}, min_keep={constraints.min_keep} allow "
            f"{max(best)} at most; ask for a share of {math.floor(100 * max(best) / sites) / 100} "
            "or less, or loosen the guards"
        )
    return best[budget][1]


def stage_optima(
    charge: Floats, constraints: Constraints, *, must: Positions = (), may: Positions | None = None
) -> dict[int, tuple[float, tuple[int, ...]]]:
    """For every feasible number of skipped sites of a stage the least charge and the set.

    `must` and `may` as for `within_budget`.
    """
    sites = len(charge)
    run = sites if constraints.max_run is None else constraints.max_run
    most = sites - min(constraints.min_keep, sites)
    # reached[j][k]: site j kept, k skipped before it.
    reached: list[dict[int, tuple[float, tuple[int, ...]]]] = [{0: (0.0, ())}]
    for j in range(1, sites + 1):  # j == sites: a virtual kept site behind the last
        entries: dict[int, tuple[float, tuple[int, ...]]] = {}
        for i in range(max(0, j - 1 - run), j) if j not in must else ():
            if may is not None and not all(t in may for t in range(i + 1, j)):
                continue
            cost = float(charge[i, i + 1 : j].sum())
            for k, (earlier, skipped) in reached[i].items():
                count, total = k + j - i - 1, earlier + cost
                if count <= most and (count not in entries or total < entries[count][0]):
                    entries[count] = (total, (*skipped, *range(i + 1, j)))
        reached.append(entries)
    return reached[sites]


def below_threshold(
    charge: Floats, threshold: float, constraints: Constraints = Constraints()
) -> tuple[int, ...]:
    """Greedy: skip a site while its divergence from the last kept one is below the threshold."""
    sites, kept, run = len(charge), 0, 0
    most = sites - min(constraints.min_keep, sites)
    skipped: list[int] = []
    for t in range(1, sites):
        allowed = constraints.max_run is None or run < constraints.max_run
        if charge[kept, t] < threshold and allowed and len(skipped) < most:
            skipped.append(t)
            run += 1
        else:
            kept, run = t, 0
    return tuple(skipped)


def charge_matrices(
    analysis: Analysis,
    planner: str,
    charges: list[Floats],
    target: Target,
    skip: float,
    seed: int,
) -> list[Floats]:
    """What each planner charges for a site."""
    if planner == "budget":
        return charges
    sizes = [len(charge) for charge in charges]

    def alike_after_any(price: Callable[[int, int], float]) -> list[Floats]:
        """The price of a site whatever was kept before it, from its stage and position."""
        return [
            np.tile([price(s, t) for t in range(size)], (size, 1)) for s, size in enumerate(sizes)
        ]

    if planner == "score":
        scores = [
            np.nan_to_num(skip_scores(part.quantiles, target), nan=0.0) for part in analysis.stages
        ]
        return alike_after_any(lambda s, t: 1.0 - float(scores[s][t]))
    if planner == "random":
        generator = np.random.default_rng(seed)
        prices = [generator.random(size) for size in sizes]
        return alike_after_any(lambda s, t: float(prices[s][t]))
    depth = {
        site: n for n, site in enumerate((s, t) for s, z in enumerate(sizes) for t in range(z))
    }
    if planner == "deepest":
        return alike_after_any(lambda s, t: -float(depth[s, t]))
    candidates = [site for site in depth if site[1] > 0]  # alternate: evenly spread
    count = math.floor(skip * sum(sizes) + 0.5)
    spread = {
        candidates[int((n + 0.5) * len(candidates) / count)]
        for n in range(min(count, len(candidates)))
    }
    return alike_after_any(lambda s, t: float((s, t) not in spread))


def skipping(
    part: StageAnalysis,
    skipped: Sequence[int],
    action: Literal["skip", "drop", "recur"],
    *,
    measure: Measure = "kl",
) -> list[Decision]:
    """What a planner decides in a stage of which it skips these positions.

    Args:
        action: what becomes of them. A skipped site that nothing reads is dropped (`drop_unread`).
        measure: the divergence from the last kept site that each is charged with.
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
    """What a plan says of site t besides its action: its divergence from the site `reference`."""

    def estimate(measure: str) -> Estimate | None:
        if reference is None:
            return None
        return Estimate(
            mean=float(part.divergences[measure][reference, t]),
            se=finite(part.divergences[f"{measure}_se"][reference, t]),
        )

    return {
        "reference": None if reference is None else part.stage.sites[reference].name,
        "kl": estimate("kl"),
        "shape": estimate("shape"),
        "mass": estimate("mass"),
        "quantile": finite(part.quantiles[t]),
        "score": finite(score),
    }


def finite(value: float) -> float | None:
    """The number, or None for NaN and infinity, which JSON lacks."""
    return float(value) if math.isfinite(value) else None

"""Choosing which retrievals to skip, from the pairwise divergences of an analysis.

Every planner with a budget is one exact dynamic programme over a charge matrix: charge[i, t] is
what skipping site t costs when site i is the last kept one before it. The baselines differ from
`budget` in the matrix only, so that all of them respect the same guards.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np

from ela_probe.analysis import Analysis, StageAnalysis
from ela_probe.beta import Floats
from ela_probe.ebqm import Target, skip_scores
from ela_probe.errors import PlanError
from ela_probe.plan import (
    Constraints,
    Estimate,
    FitSummary,
    Origin,
    SitePlan,
    SkipPlan,
    StagePlan,
)
from ela_probe.sites import Action, fingerprint

Planner = Literal["budget", "score", "threshold", "random", "alternate", "deepest"]
PLANNERS: tuple[str, ...] = get_args(Planner)
Measure = Literal["kl", "shape", "js"]


def make_plan(
    analysis: Analysis,
    *,
    skip: float = 0.3,
    planner: Planner = "budget",
    threshold: float | None = None,
    action: Literal["skip", "drop", "recur"] = "skip",
    measure: Measure = "kl",
    concentration: float = 4.0,
    constraints: Constraints = Constraints(),
    seed: int = 0,
) -> SkipPlan:
    """A plan that skips a share of the retrievals.

    Args:
        skip: share of all retrievals not to form; the nearest whole number is taken.
        planner: `budget` (least total divergence, exact), `score` (highest EBQM skip scores),
            `threshold` (greedy: skip while the divergence from the last kept site is below
            `threshold` nats), or a baseline: `random`, `alternate`, `deepest`.
        action: what becomes of a skipped site. Sites that no later retrieval of their stage
            reads are dropped rather than skipped.
        measure: the divergence that is charged.
        concentration: κ of the target distribution of the skip scores.
        seed: of the `random` planner.

    Raises:
        PlanError: the share is out of range or more than the guards allow, or a needed
            threshold is missing.
    """
    if planner not in PLANNERS:
        raise PlanError(f"no planner is called {planner!r}; expected one of {', '.join(PLANNERS)}")
    if not 0 <= skip < 1:
        raise PlanError(f"cannot skip a share of {skip}; expected at least 0 and less than 1")
    if (threshold is None) == (planner == "threshold"):
        raise PlanError("the planner 'threshold' needs a threshold in nats, and no other takes one")
    target = Target(skip=min(max(skip, 0.01), 0.99), concentration=concentration)
    charges = [part.divergences[measure] for part in analysis.stages]
    if threshold is not None:
        chosen = [below_threshold(charge, threshold, constraints) for charge in charges]
    else:
        sites = sum(len(part.stage.sites) for part in analysis.stages)
        matrices = charge_matrices(analysis, planner, charges, target, skip, seed)
        chosen = within_budget(matrices, math.floor(skip * sites + 0.5), constraints)

    stages, total = [], 0.0
    for part, skipped, charge in zip(analysis.stages, chosen, charges, strict=True):
        stage, cost = describe(part, skipped, action, skip_scores(part.quantiles, target), charge)
        stages.append(stage)
        total += cost
    source = analysis.provenance
    return SkipPlan(
        fingerprint=fingerprint([part.stage for part in analysis.stages]),
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
        ),
        charge=total,
        stages=tuple(stages),
    )


def within_budget(
    charges: Sequence[Floats], budget: int, constraints: Constraints = Constraints()
) -> list[tuple[int, ...]]:
    """The sets of skipped sites, `budget` in all stages together, of least total charge.

    Args:
        charges: a [T, T] matrix a stage; charge[i, t], i < t, is paid for skipping site t after
            the last kept site i. Site 0 is always kept.

    Returns: per stage the skipped positions, rising.

    Raises:
        PlanError: the guards allow fewer.
    """
    # best[k]: the least charge of skipping k sites of the stages so far, and which.
    best: dict[int, tuple[float, list[tuple[int, ...]]]] = {0: (0.0, [])}
    for charge in charges:
        own = stage_optima(charge, constraints)
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
    charge: Floats, constraints: Constraints
) -> dict[int, tuple[float, tuple[int, ...]]]:
    """For every feasible number of skipped sites of a stage the least charge and the set."""
    sites = len(charge)
    run = sites if constraints.max_run is None else constraints.max_run
    most = sites - min(constraints.min_keep, sites)
    # reached[j][k]: site j kept, k skipped before it.
    reached: list[dict[int, tuple[float, tuple[int, ...]]]] = [{0: (0.0, ())}]
    for j in range(1, sites + 1):  # j == sites: a virtual kept site behind the last
        entries: dict[int, tuple[float, tuple[int, ...]]] = {}
        for i in range(max(0, j - 1 - run), j):
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


def describe(
    part: StageAnalysis,
    skipped: Sequence[int],
    action: Literal["skip", "drop", "recur"],
    scores: Floats,
    charge: Floats,
) -> tuple[StagePlan, float]:
    """The plan of a stage and what its skipped sites are charged in all."""
    names = [site.name for site in part.stage.sites]
    last_kept = max(t for t in range(len(names)) if t not in skipped)
    sites, kept, total = [], 0, 0.0

    def estimate(name: str, i: int, t: int) -> Estimate:
        error = float(part.divergences[f"{name}_se"][i, t])
        return Estimate(
            mean=float(part.divergences[name][i, t]), se=error if math.isfinite(error) else None
        )

    for t, site in enumerate(part.stage.sites):
        what: Action = "keep"
        reference = t - 1
        if t in skipped:
            what = "drop" if t > last_kept and action == "skip" else action
            reference = kept
            total += float(charge[kept, t])
        else:
            kept = t
        sites.append(
            SitePlan(
                name=site.name,
                sources=site.sources,
                action=what,
                reference=names[reference] if t else None,
                kl=estimate("kl", reference, t) if t else None,
                shape=estimate("shape", reference, t) if t else None,
                mass=estimate("mass", reference, t) if t else None,
                quantile=finite(part.quantiles[t]),
                score=finite(scores[t]),
            )
        )
    fit = None if part.fit is None else FitSummary.model_validate(vars(part.fit))
    return StagePlan(name=part.stage.name, kind=part.stage.kind, fit=fit, sites=tuple(sites)), total


def finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None

"""Which sites of each stage to skip for a budget of retrievals, by an exact dynamic programme.

It runs over a charge matrix: charge[i, t] is the price of skipping site t when site i is the last
kept site before it. The baselines differ from the planner `budget` in this matrix only, so all of
them obey the same guards.
"""

import itertools
import math
from collections.abc import Callable, Collection, Sequence

import numpy as np

from ela_probe.analysis.ebqm import Target, skip_scores
from ela_probe.analysis.result import Analysis
from ela_probe.errors import PlanError
from ela_probe.pruning.plan import Constraints
from ela_probe.system.arrays import Floats

Positions = Collection[int]
# The least charge of skipping so many sites, and which sites: by number of skipped sites.
Optima = dict[int, tuple[float, tuple[int, ...]]]


def within_budget(
    charges: Sequence[Floats],
    budget: int,
    constraints: Constraints = Constraints(),
    *,
    must: Sequence[Positions] | None = None,
    may: Sequence[Positions] | None = None,
) -> list[tuple[int, ...]]:
    """The `budget` sites of all stages together whose skipping has the least total charge.

    Args:
        charges: a [T, T] matrix for each stage; charge[i, t] with i < t is the price of skipping
            site t after the last kept site i, and charge[0, t] also where none is kept before it.
            What costs inf is not skipped.
        must: per stage the positions that are skipped in any case; none by default.
        may: per stage the only positions that may be skipped; all but the first by default.

    Returns: per stage the skipped positions in ascending order.

    Raises:
        PlanError: the guards allow fewer.
    """
    best = combined_optima(charges, constraints, must=must, may=may)
    if budget not in best:
        sites = sum(len(charge) for charge in charges)
        unknown = sum(int(np.isinf(charge[0]).sum()) for charge in charges)
        first_kept = may is None or any(0 not in positions for positions in may)
        reasons = [f"{unknown} have no action whose damage is known"] if unknown else []
        reasons += ["the first of every stage is kept"] if first_kept and not unknown else []
        raise PlanError(
            f"cannot skip {budget} of {sites} retrievals: {''.join(f'{r}, and ' for r in reasons)}"
            f"max_run={constraints.max_run}, min_keep={constraints.min_keep} allow "
            f"{max(best)} at most; ask for a share of {math.floor(100 * max(best) / sites) / 100} "
            "or less, or loosen the guards"
        )
    return best[budget][1]


def combined_optima(
    charges: Sequence[Floats],
    constraints: Constraints = Constraints(),
    *,
    must: Sequence[Positions] | None = None,
    may: Sequence[Positions] | None = None,
) -> dict[int, tuple[float, list[tuple[int, ...]]]]:
    """For every feasible number of skipped sites: the least charge, and per stage those sites.

    The arguments are those of `within_budget`.
    """
    best: dict[int, tuple[float, list[tuple[int, ...]]]] = {0: (0.0, [])}
    for s, charge in enumerate(charges):
        optima = stage_optima(
            charge,
            constraints,
            must=() if must is None else must[s],
            may=None if may is None else may[s],
        )
        combined: dict[int, tuple[float, list[tuple[int, ...]]]] = {}
        for (k, (cost, sets)), (m, (added, skipped)) in itertools.product(
            best.items(), optima.items()
        ):
            total = cost + added
            if k + m not in combined or total < combined[k + m][0]:
                combined[k + m] = (total, [*sets, skipped])
        best = combined
    return best


def stage_optima(
    charge: Floats, constraints: Constraints, *, must: Positions = (), may: Positions | None = None
) -> Optima:
    """For every feasible number of skipped sites of a stage: the least charge, and those sites.

    `must` and `may` as for `within_budget`, for this stage.
    """
    sites = len(charge)
    if may is None:
        may = range(1, sites)
    run = sites if constraints.max_run is None else constraints.max_run
    most = sites - min(constraints.min_keep, sites)
    # reached[j][k]: site j is kept and k sites before it are skipped. Virtual sites are kept before
    # the first one and after the last one.
    reached: dict[int, Optima] = {-1: {0: (0.0, ())}}
    for j in range(sites + 1):
        reached[j] = {}
        for i in range(max(-1, j - 1 - run), j) if j not in must else ():
            cost = float(charge[max(0, i), i + 1 : j].sum())
            if cost == math.inf or not all(t in may for t in range(i + 1, j)):
                continue
            for k, (earlier, skipped) in reached[i].items():
                count, total = k + j - i - 1, earlier + cost
                if count <= most and (count not in reached[j] or total < reached[j][count][0]):
                    reached[j][count] = (total, (*skipped, *range(i + 1, j)))
    return reached[sites]


def below_threshold(
    charge: Floats, threshold: float, constraints: Constraints = Constraints()
) -> tuple[int, ...]:
    """Greedy: skip each site whose divergence from the last kept site is below the threshold."""
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
    """The charge matrix of each stage that a planner minimises. charges: the divergences."""
    if planner == "budget":
        return charges
    sizes = [len(charge) for charge in charges]

    def matrices_of(price: Callable[[int, int], float]) -> list[Floats]:
        """From the price of a stage's site, which does not depend on the last kept site."""
        return [
            np.tile([price(s, t) for t in range(size)], (size, 1)) for s, size in enumerate(sizes)
        ]

    if planner == "score":
        scores = [
            np.nan_to_num(skip_scores(part.quantiles, target), nan=0.0) for part in analysis.stages
        ]
        return matrices_of(lambda s, t: 1.0 - float(scores[s][t]))
    if planner == "random":
        generator = np.random.default_rng(seed)
        prices = [generator.random(size) for size in sizes]
        return matrices_of(lambda s, t: float(prices[s][t]))
    depth = {
        site: n for n, site in enumerate((s, t) for s, z in enumerate(sizes) for t in range(z))
    }
    if planner == "deepest":
        return matrices_of(lambda s, t: -float(depth[s, t]))
    candidates = [site for site in depth if site[1] > 0]  # alternate: evenly spread
    count = math.floor(skip * sum(sizes) + 0.5)
    spread = {
        candidates[int((n + 0.5) * len(candidates) / count)]
        for n in range(min(count, len(candidates)))
    }
    return matrices_of(lambda s, t: float((s, t) not in spread))

"""The actions of the least charge for a time: the plans that no other beats in time and charge.

A dynamic programme along each stage keeps, for every state, all partial plans that no other one
beats. Then the stages are combined. The plans left at the end answer every time budget at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from ela_probe.analysis.result import Analysis, StageAnalysis
from ela_probe.errors import PlanError
from ela_probe.pruning.plan import Constraints
from ela_probe.sites import FORMED, Action, is_needed, last_formed
from ela_probe.system.arrays import Floats

if TYPE_CHECKING:
    from ela_probe.pruning.cost_model import CostModel, StageCosts

ACTIONS: tuple[Action, ...] = get_args(Action)
# The most plans that a frontier holds. With fewer it is exact (see `Frontier.best_of`).
LIMIT = 2000


class Decision(NamedTuple):
    """A site's action, the position of the site it is compared with, and its charge in nats."""

    action: Action
    reference: int | None
    charge: float


class Charges(NamedTuple):
    """The charges of a stage's actions, in nats.

    skip, recur: [T, T]; entry (i, t) is for site t when the last formed site before it is i.
    affine: [T]. lost: [T]; how much later sites lose when site t is not a source. inf stands for an
    action that can't be chosen. carried_over: as in `Stage`. removed: the positions that can't be
    kept.
    """

    skip: Floats
    recur: Floats
    lost: Floats
    affine: Floats
    carried_over: bool = False
    removed: frozenset[int] = frozenset()

    @classmethod
    def by_damage(cls, part: StageAnalysis) -> Charges:
        """The charge of an action is its predicted damage; inf where that was not measured.

        Damage doesn't say what later sites lose when a source is missing, so `drop` is only left
        where nothing reads the source.
        """
        sites = len(part.stage.sites)
        by_action: dict[Action, Floats] = {}
        for action in ("skip", "recur", "affine"):
            found = [
                None if part.damage is None else part.damage.of(t, action) for t in range(sites)
            ]
            by_action[action] = np.array([np.inf if e is None else e.mean for e in found])
        return cls(
            np.tile(by_action["skip"], (sites, 1)),
            np.tile(by_action["recur"], (sites, 1)),
            np.full(sites, np.inf),
            by_action["affine"],
            part.stage.carried_over,
        )

    @classmethod
    def of(cls, part: StageAnalysis) -> Charges:
        """The charge of a skipped site is kl(i,t) and of a recurring one shape(i,t).

        A dropped site is charged kl(i,t) and Σ_j −log(1 − w̄_j(t)), over the later sites j that
        give it the mean weight w̄_j(t). That sum, `lost`, is unknown for weights of kind `channel`,
        which say nothing about layers, and for a stage whose sources the next stage reads too.
        """
        sites = part.stage.sites
        lost = np.full(len(sites), np.inf)
        if part.stage.kind != "channel" and not part.stage.carried_over:
            for t, site in enumerate(sites):
                weights = part.weights[t + 1 :, site.sources - 1]
                lost[t] = -np.log(np.maximum(1.0 - weights, np.finfo(float).tiny)).sum()
        return cls(
            part.divergences["kl"],
            part.divergences["shape"],
            lost,
            np.full(len(sites), np.inf),
            part.stage.carried_over,
        )

    def only(self, action: Action, *, removed: Mapping[int, float], final: bool = True) -> Charges:
        """The same with `skip` (and `drop`, where nothing reads the source) or `affine` alone.

        removed: positions whose removal is done, with what it costs more than when it was done.
        final: whether these can't be kept.
        """
        done, never = list(removed), np.inf
        skip = self.skip.copy() if action == "skip" else np.full_like(self.skip, never)
        affine = self.affine.copy() if action == "affine" else np.full_like(self.affine, never)
        for charge in (skip, affine):
            rises = np.broadcast_to(list(removed.values()), charge[..., done].shape)
            charge[..., done] = np.where(np.isfinite(charge[..., done]), rises, never)
        return self._replace(
            skip=skip, affine=affine, recur=np.full_like(self.recur, never),
            removed=frozenset(removed) if final else frozenset(),
        )  # fmt: skip

    def decisions(self, actions: Sequence[Action]) -> list[Decision]:
        """The actions of a stage with their references and charges."""
        decided, formed = [Decision("keep", None, 0.0)], 0
        last = last_formed(actions)
        for t, action in enumerate(actions[1:], start=1):
            charge = {
                "keep": 0.0,
                "recur": self.recur[formed, t],
                "affine": self.affine[t],
            }.get(action, self.skip[formed, t])
            if action == "drop" and is_needed(t, last, carried_over=self.carried_over):
                charge += self.lost[t]
            reference = t - 1 if action == "keep" else formed
            decided.append(Decision(action, reference, float(charge)))
            if action in FORMED:
                formed = t
        return decided


@dataclass(frozen=True)
class Frontier:
    """Plans in the order of rising seconds and falling charge.

    seconds, charges: [plans]. actions: [plans, sites], as positions in ACTIONS.
    """

    seconds: Floats
    charges: Floats
    actions: NDArray[np.int8]

    @classmethod
    def of_one(cls, sites: int) -> Frontier:
        """A single plan that keeps everything; its seconds are not counted yet."""
        return cls(np.zeros(1), np.zeros(1), np.zeros((1, sites), dtype=np.int8))

    @classmethod
    def best_of(cls, parts: Sequence[Frontier]) -> Frontier:
        """The plans of all parts that no other plan beats.

        If there are more than LIMIT, the plan of the least charge is kept in each of LIMIT equal
        intervals of seconds. So each thinning replaces a plan by one of no higher charge that takes
        longer by 1 / LIMIT of the range at most. The fastest plan is always kept.
        """
        seconds = np.concatenate([part.seconds for part in parts])
        charges = np.concatenate([part.charges for part in parts])
        chosen = unbeaten(seconds, charges)
        return cls(
            seconds[chosen],
            charges[chosen],
            np.concatenate([part.actions for part in parts])[chosen],
        )

    def then(self, t: int, action: Action, *, seconds: float, charge: float) -> Frontier:
        """The same plans, with an action at site t that adds these seconds and this charge."""
        actions = self.actions
        if action != "keep":
            actions = actions.copy()
            actions[:, t] = ACTIONS.index(action)
        return Frontier(self.seconds + seconds, self.charges + charge, actions)

    def beside(self, other: Frontier) -> Frontier:
        """Every plan of this stage (or stages) combined with every plan of another stage."""
        seconds = np.add.outer(self.seconds, other.seconds).ravel()
        charges = np.add.outer(self.charges, other.charges).ravel()
        chosen = unbeaten(seconds, charges)
        here, there = np.divmod(chosen, len(other.seconds))
        actions = np.concatenate([self.actions[here], other.actions[there]], axis=1)
        return Frontier(seconds[chosen], charges[chosen], actions)


def within_time(
    analysis: Analysis,
    costs: CostModel,
    time: float,
    constraints: Constraints = Constraints(),
    *,
    by_damage: bool = False,
) -> list[list[Decision]]:
    """Per stage the decisions of the least total charge within a time.

    Args:
        by_damage: charge the predicted damage instead of divergences.
        time: the predicted step takes at most this share of the predicted unpruned step's time.

    Raises:
        PlanError: the costs were measured on another model, or no plan is so fast; then the
            message gives the least possible ratio.
    """
    if not 0 < time <= 1:
        raise PlanError(
            f"got a time of {time} of the unpruned step's; expected more than 0 and at most 1"
        )
    costs.check_sites([part.stage for part in analysis.stages])
    charged = Charges.by_damage if by_damage else Charges.of
    charges = [charged(part) for part in analysis.stages]
    total = whole_frontier(costs, charges, constraints)
    full, base = costs.predict({}), costs.base.value
    affordable = int(np.searchsorted(total.seconds, time * full - base + 1e-9 * full, side="right"))
    if not affordable:
        least = math.ceil(100 * (base + total.seconds[0]) / full) / 100
        raise PlanError(
            f"no plan takes {time:g} of the unpruned step's time: with max_run="
            f"{constraints.max_run}, min_keep={constraints.min_keep} the least is {least}; "
            "ask for that or more, or loosen the guards"
        )
    row = iter(total.actions[affordable - 1])
    return [
        charge.decisions([ACTIONS[next(row)] for _ in stage.sites])
        for stage, charge in zip(costs.stages, charges, strict=True)
    ]


def whole_frontier(
    costs: CostModel, charges: Sequence[Charges], constraints: Constraints = Constraints()
) -> Frontier:
    """The plans of all stages that no other beats, with the seconds that they add to the base."""
    total = Frontier.of_one(0)
    for stage, charge in zip(costs.stages, charges, strict=True):
        total = total.beside(stage_frontier(stage, charge, constraints))
    return total


class State(NamedTuple):
    """formed: the last formed site; how: its action; dropped, kept: numbers of sites so far."""

    formed: int
    how: Action
    dropped: int
    kept: int


def stage_frontier(
    costs: StageCosts, charges: Charges, constraints: Constraints = Constraints()
) -> Frontier:
    """The plans of a stage that no other beats, with the seconds that they add to the base.

    A state holds the last formed site and its action, how many sources were dropped so far (later
    kept sites get shorter by them), and how many sites were kept (counted up to min_keep).
    """
    sites = len(costs.sites)
    enough = min(constraints.min_keep, sites)
    run = sites if constraints.max_run is None else constraints.max_run
    states = {State(0, "keep", 0, 1): Frontier.of_one(sites)}
    finished: list[Frontier] = []

    def finish(state: State, plans: Frontier) -> None:
        """End the stage after its last formed site: nothing reads the sources of the others.

        To drop them takes no time; a stand-in takes some.
        """
        if state.kept < enough or sites - 1 - state.formed > run:
            return
        for t in range(state.formed + 1, sites):
            parts = []
            if math.isfinite(charges.skip[state.formed, t]):
                charge = charges.skip[state.formed, t]
                parts.append(plans.then(t, "drop", seconds=0.0, charge=charge))
            if costs.affine and math.isfinite(charges.affine[t]):
                seconds = costs.affine.value
                parts.append(plans.then(t, "affine", seconds=seconds, charge=charges.affine[t]))
            if not parts:
                return
            plans = Frontier.best_of(parts)
        finished.append(plans)

    for t in range(1, sites):
        reached: dict[State, list[Frontier]] = {}
        for state, plans in states.items():
            if state.formed == t - 1 and not is_needed(
                t, state.formed, carried_over=costs.carried_over
            ):
                finish(state, plans)
            for action, seconds, charge in choices(costs, charges, t, state):
                unformed = action not in FORMED
                if unformed and t - state.formed > run:
                    continue
                new = State(
                    state.formed if unformed else t,
                    state.how if unformed else action,
                    state.dropped + (action == "drop"),
                    min(enough, state.kept + (action == "keep")),
                )
                after = plans.then(t, action, seconds=seconds, charge=charge)
                reached.setdefault(new, []).append(after)
        states = {state: Frontier.best_of(parts) for state, parts in reached.items()}
    for state, plans in states.items():
        complete = is_needed(sites - 1, state.formed, carried_over=costs.carried_over)
        if complete and state.kept >= enough:
            finished.append(plans)
    return Frontier.best_of(finished)


def choices(
    costs: StageCosts, charges: Charges, t: int, state: State
) -> Iterator[tuple[Action, float, float]]:
    """The actions possible at site t if something reads it later, with seconds and charges."""
    site, formed = costs.sites[t], state.formed
    sources = site.sources - state.dropped
    keep, source, start = (
        0.0 if cost is None else cost.value for cost in (costs.keep, costs.source, costs.start)
    )
    if t not in charges.removed:
        yield "keep", keep + source * sources, 0.0
    if "recur" in site.actions and costs.recur and (costs.recur_after_skip or formed == t - 1):
        seconds = costs.recur.value + start * sources * (state.how == "keep")
        if math.isfinite(charges.recur[formed, t]):
            yield "recur", seconds, float(charges.recur[formed, t])
    if "skip" in site.actions and costs.skip and math.isfinite(charges.skip[formed, t]):
        yield "skip", costs.skip.value, float(charges.skip[formed, t])
    if (
        "affine" in site.actions
        and costs.skip
        and costs.affine
        and math.isfinite(charges.affine[t])
    ):
        yield "affine", costs.skip.value + costs.affine.value, float(charges.affine[t])
    if "drop" in site.actions and math.isfinite(charges.lost[t]):
        yield "drop", 0.0, float(charges.skip[formed, t] + charges.lost[t])


def unbeaten(seconds: Floats, charges: Floats) -> NDArray[np.intp]:
    """Positions of the plans with a lower charge than all faster plans, by rising seconds."""
    order = np.lexsort((charges, seconds))
    sorted_charges = charges[order]
    before = np.minimum.accumulate(sorted_charges)[:-1]
    order = order[np.concatenate([[True], sorted_charges[1:] < before])]
    if len(order) <= LIMIT:
        return order
    times = seconds[order]
    interval = ((times - times[0]) * (LIMIT - 1) / (times[-1] - times[0])).astype(int)
    last = np.append(np.flatnonzero(np.diff(interval)), len(order) - 1)
    return order[np.union1d(0, last)]

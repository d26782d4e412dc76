"""GradualPruning: the state of a network that is pruned while it trains, and its next step."""

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import nn

from ela_probe.analysis.ebqm import Target, skip_scores
from ela_probe.analysis.result import Analysis, Provenance, StageAnalysis
from ela_probe.errors import CheckpointError, OptionError
from ela_probe.pruning.cost_model import CostModel
from ela_probe.pruning.measure_costs import measure_costs
from ela_probe.pruning.plan import Constraints, SkipPlan
from ela_probe.system.arrays import Floats
from ela_probe.system.numbers import finite_or_none
from ela_probe.system.processes import broadcast
from ela_probe.training.ela.config import ELAConfig, Schedule
from ela_probe.training.ela.nested_plans import (
    Names,
    draw_positions,
    due_part,
    most_removable,
    plan_skipping,
    proposal,
    skip_count,
    within_goal,
)
from ela_probe.training.ela.network import Network

# How often each plan is timed where ELA measures costs by itself.
FEWEST_ROUNDS, MOST_ROUNDS = 4, 20


class GradualPruning:
    """The pruning of a network in steps, from unpruned to its final plan.

    Args:
        config: the settings.
        module: the module that trains the network, which is unpruned.
        given: the network, if it is not the first part that an adapter supports.
        provenance: what is known of model and data, for the plans.

    Attributes:
        network: the network.
        plan: the plan so far, in terms of the unpruned network; None before the first step.
        schedule: None until it is set.
        costs: the time of each action, for a run with `time`; None until it is known.

    Raises:
        ModelError: no part of the module has layer attention.
        PlanError: the adapter does not support the action, the share is too large or small, or the
            costs were measured on another model.
    """

    def __init__(
        self,
        config: ELAConfig,
        module: nn.Module,
        *,
        given: nn.Module | None = None,
        provenance: Provenance = Provenance(),
    ) -> None:
        self.config, self.provenance = config, provenance
        self.constraints = Constraints(max_run=config.max_run, min_keep=config.min_keep)
        self.network = Network(module, given, decay=config.decay, keep_removed=config.regrow)
        stages = self.network.stages
        self._final_count = (
            most_removable(
                stages,
                self.constraints,
                action=config.action,
                by_time=config.time is not None,
            )
            if config.skip is None
            else skip_count(config.skip, stages, self.constraints)
        )
        self.costs: CostModel | None = None
        if config.costs is not None:
            self.costs = CostModel.load(config.costs)
            self.costs.check_sites(stages)
        for action in {config.action, "skip"} if config.stochastic else {config.action}:
            self.network.check_action(action)
        if config.measures_damage:
            self.network.handovers()
        self.plan: SkipPlan | None = None
        self.schedule: Schedule | None = None
        self._proposed: Names = frozenset()
        # Of stand-ins the mean gradients (`StandInGradients`): the first, and the average by now
        self._gradients: dict[str, tuple[float, float]] = {}

    @property
    def sites(self) -> int:
        """The number of retrievals of the unpruned network."""
        return sum(len(stage.sites) for stage in self.network.stages)

    @property
    def removed(self) -> Names:
        """The sites whose retrieval was removed."""
        return skipped_by(self.plan)

    @property
    def analysis(self) -> Analysis:
        """The averages over epochs, of all sites. Raises AnalysisError if no epoch has ended."""
        parts = tuple(average.analysis() for average in self.network.averages)
        provenance = self.provenance.model_copy(
            update={"split": "train", "samples": max(part.samples for part in parts)}
        )
        return Analysis(parts, provenance, self._target())

    def site_rows(self, done: int) -> list[dict[str, Any]]:
        """After `done` epochs the averages and the action of every site, one row each.

        kl, shape, mass: from the site before, in nats. damage: of the site's action, or of the one
        that it would get, in nats. None: unknown.
        """
        actions = {} if self.plan is None else self.plan.actions
        rises = self.rises if self.config.regrow else {}
        rows = []
        for part in self.analysis.stages:
            measures = {name: part.adjacent(name) for name in ("kl", "shape", "mass")}
            for t, site in enumerate(part.stage.sites):
                action = actions.get(site.name, "keep")
                tried = self.config.action if action == "keep" else action
                damage = None if part.damage is None else part.damage.of(t, tried)
                row = {"epoch": done, "stage": part.stage.name, "site": site.name, "action": action}
                row |= {name: finite_or_none(value[t]) for name, value in measures.items()}
                mean = None if damage is None else damage.mean + rises.get(site.name, 0.0)
                rows.append({**row, "damage": mean})
        return rows

    @property
    def warmup(self) -> float:
        """Epochs before the first removal."""
        return self._scheduled.warmup

    def first_batches(self, batches: float) -> int | None:
        """As `Schedule.first_batches`."""
        return self._scheduled.first_batches(batches)

    def is_final(self, done: float) -> bool:
        """Whether the plan changes no more after `done` epochs."""
        return done >= self._scheduled.last or self._has_reached_goal

    @property
    def time(self) -> float | None:
        """The predicted step's time as a share of the unpruned step's; None without costs."""
        if self.costs is None:
            return None
        actions = {} if self.plan is None else self.plan.actions
        return self.costs.predict(actions) / self.costs.predict({})

    @property
    def needs_costs(self) -> bool:
        """Whether the next step needs costs that were not measured yet."""
        return self.config.time is not None and self.costs is None

    def measure_costs(self, batch: Any, *, steps: float) -> None:
        """Time the actions on copies of the unpruned network; the first process's times count.

        Args:
            batch: inputs and labels, on the device of the network.
            steps: about so many training steps may be spent on it; at least FEWEST_ROUNDS of each
                timed plan are made.

        Raises:
            OptionError: the batch is no pair of tensors.
        """
        parts = batch if isinstance(batch, (tuple, list)) else [batch]
        if [isinstance(part, torch.Tensor) for part in parts] != [True, True]:
            came = ", ".join(type(part).__name__ for part in parts)
            raise OptionError(
                "ELA: time without costs measures them on a batch of two tensors, inputs and "
                f"labels, got {came}; measure them with `ela-probe costs`, and give costs=FILE"
            )
        plans = 2 + 6 * len(self.network.stages)
        spare = 0.0 if math.isinf(steps) else steps / plans
        with self.network.uncompiled() as model:
            measured = measure_costs(
                model,
                (parts[0], parts[1]),
                rounds=int(min(max(spare, FEWEST_ROUNDS), MOST_ROUNDS)),
                progress=False,
            )
        self.costs = broadcast(measured)

    @property
    def _has_reached_goal(self) -> bool:
        """With loss or time: whether the share or the time is reached."""
        if self.config.by_ramp:
            return False
        time, wanted = self.time, self.config.time
        if self.config.regrow:
            return False
        in_time = wanted is not None and time is not None and time <= wanted
        return in_time or len(self.removed) >= self._final_count

    def step(
        self,
        found: Iterable[StageAnalysis],
        done: float,
        optimizers: Sequence[torch.optim.Optimizer] = (),
        *,
        gradients: Mapping[str, float] = MappingProxyType({}),
    ) -> bool:
        """Add an epoch to the averages, propose a plan, and remove what is due by now.

        Args:
            found: the analysis of the epoch, by stage.
            done: number of epochs done, which need not be whole.
            optimizers: of the network; they forget the removed parameters.
            gradients: by removed site what `StandInGradients` found in the epoch.

        Returns: whether there is a new plan.

        Raises:
            PlanError: the adapter refuses the plan.
        """
        # every process plans with the statistics of the first
        self.network.average(broadcast(tuple(found)))
        config, analysis = self.config, self.analysis
        for site, found_now in broadcast(dict(gradients)).items():
            first, average = self._gradients.get(site, (found_now, found_now))
            average = config.decay * average + (1 - config.decay) * found_now
            self._gradients[site] = first, average
        if config.by_ramp:
            skipped = self._due(analysis, done)
        elif done < self.warmup:
            skipped = self.removed
        else:
            skipped = within_goal(
                analysis,
                action=config.action,
                removed=self.removed,
                most=self._final_count,
                constraints=self.constraints,
                loss=config.loss,
                time=config.time,
                costs=self.costs,
                rises=self.rises if config.regrow else None,
            )
        if skipped == self.removed and not self.is_final(done):
            return False
        plan = plan_skipping(
            skipped,
            analysis,
            planner=config.planner,
            action=config.action,
            constraints=self.constraints,
            epoch=math.floor(done),
            last=self.plan,
        )
        self.network.prune_to(plan, optimizers)
        if self.is_final(done):
            self.network.forget_removed()
        self.plan = plan
        self._gradients = {s: known for s, known in self._gradients.items() if s in skipped}
        return True

    @property
    def rises(self) -> dict[str, float]:
        """By removed site, how much more nats its absence is predicted to cost than at its removal.

        The damage at its removal times the relative rise of its stand-in's gradients; 0 where
        there was no damage, or no rise.
        """
        rises = {}
        for part in self.analysis.stages:
            for t, site in enumerate(part.stage.sites):
                damage = None if part.damage is None else part.damage.of(t, self.config.action)
                first, average = self._gradients.get(site.name, (0.0, 0.0))
                if damage is not None and first > 0:
                    rises[site.name] = max(damage.mean, 0.0) * max(average / first - 1, 0.0)
        return rises

    def _due(self, analysis: Analysis, done: float) -> Names:
        """The sites that are due after `done` epochs of a ramp."""
        config = self.config
        self._proposed = proposal(
            analysis,
            self._final_count,
            planner=config.planner,
            action=config.action,
            before=self._proposed,
            removed=self.removed,
            hysteresis=config.hysteresis,
            constraints=self.constraints,
        )
        waits = config.stochastic and not self.is_final(done)
        due = 0 if waits else math.floor(self._scheduled.fraction(done) * self._final_count + 0.5)
        return due_part(
            self._proposed,
            analysis,
            max(due, len(self.removed)),
            planner=config.planner,
            action=config.action,
            removed=self.removed,
            constraints=self.constraints,
        )

    def scores(self, done: int) -> list[Floats]:
        """The probability of each site, by stage, to be skipped in a step after `done` epochs.

        Empty if nothing is skipped at random.
        """
        fraction = self._scheduled.fraction(done)
        known = all(average.seen for average in self.network.averages)
        if not (self.config.stochastic and known and fraction) or self.is_final(done):
            return []
        target = self._target(fraction)
        return [skip_scores(stage.quantiles, target) for stage in self.analysis.stages]

    def draw(self, scores: Sequence[Floats], epoch: int, batch: int) -> list[str]:
        """The sites that a step skips at random. Seed, epoch and batch determine them."""
        random = np.random.default_rng([self.config.seed, epoch, batch])
        return [
            stage.sites[t].name
            for stage, of_stage in zip(self.network.stages, scores, strict=True)
            for t in draw_positions(of_stage, self.constraints, random)
        ]

    def rebuild(self, text: str | None) -> None:
        """Prune the network as it was under a saved plan.

        Args:
            text: the plan as JSON; None if there was none.

        Raises:
            PlanError: the plan was made for other sites.
            CheckpointError: the network is pruned further than the plan says.
        """
        plan = None if text is None else SkipPlan.parse(text, "the saved plan")
        further = sorted(self.removed - skipped_by(plan))
        if further:
            raise CheckpointError(
                f"the network was pruned further than the checkpoint's, by {', '.join(further)}; "
                "build the module anew before its checkpoint is loaded"
            )
        if plan is not None:
            plan.check_sites(self.network.stages)
            self.network.prune_to(plan)
            self.plan = plan

    def state_dict(self) -> dict[str, Any]:
        """Plan, schedule, proposal, costs and averages, as plain values and tensors."""
        return {
            "plan": None if self.plan is None else self.plan.model_dump_json(),
            "schedule": None if self.schedule is None else vars(self.schedule).copy(),
            "proposed": sorted(self._proposed),
            "costs": None if self.costs is None else self.costs.model_dump_json(),
            "averages": [average.state_dict() for average in self.network.averages],
            "regrow": self.network.state_dict() if self.config.regrow else None,
            "gradients": dict(self._gradients),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the result of `state_dict`. Raises as `rebuild`."""
        self.rebuild(state["plan"])
        self.schedule = None if state["schedule"] is None else Schedule(**state["schedule"])
        self._proposed = frozenset(state["proposed"])
        if state.get("costs") is not None:  # a state that an older version wrote has none
            self.costs = CostModel.parse(state["costs"], "the saved costs")
        for average, kept in zip(self.network.averages, state["averages"], strict=True):
            average.load_state_dict(kept)
        if state.get("regrow") is not None:
            self.network.load_state_dict(state["regrow"])
            self._gradients = {site: tuple(known) for site, known in state["gradients"].items()}

    @property
    def _scheduled(self) -> Schedule:
        assert self.schedule is not None  # set before the first epoch
        return self.schedule

    def _target(self, fraction: float = 1.0) -> Target:
        return Target(
            skip=fraction * self.config.mean_score, concentration=self.config.concentration
        )


def skipped_by(plan: SkipPlan | None) -> Names:
    """The sites whose retrieval a plan removes."""
    return frozenset() if plan is None else frozenset(plan.changes)

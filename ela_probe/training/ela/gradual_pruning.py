"""GradualPruning: the state of a network that is pruned while it trains, and its next step."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ela_probe.analysis.ebqm import Target, skip_scores
from ela_probe.analysis.result import Analysis, Provenance, StageAnalysis
from ela_probe.errors import CheckpointError
from ela_probe.pruning.plan import Constraints, SkipPlan
from ela_probe.system.arrays import Floats
from ela_probe.system.numbers import finite_or_none
from ela_probe.system.processes import broadcast
from ela_probe.training.ela.config import ELAConfig, Schedule
from ela_probe.training.ela.nested_plans import (
    Names,
    draw_positions,
    due_part,
    plan_skipping,
    proposal,
    skip_count,
)
from ela_probe.training.ela.network import Network


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

    Raises:
        ModelError: no part of the module has layer attention.
        PlanError: the adapter does not support the action, or the share is too large or small.
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
        self.network = Network(module, given, decay=config.decay)
        self._final_count = skip_count(config.skip, self.network.stages, self.constraints)
        for action in {config.action, "skip"} if config.stochastic else {config.action}:
            self.network.check_action(action)
        if config.measures_damage:
            self.network.handovers()
        self.plan: SkipPlan | None = None
        self.schedule: Schedule | None = None
        self._proposed: Names = frozenset()

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
        rows = []
        for part in self.analysis.stages:
            measures = {name: part.adjacent(name) for name in ("kl", "shape", "mass")}
            for t, site in enumerate(part.stage.sites):
                action = actions.get(site.name, "keep")
                tried = self.config.action if action == "keep" else action
                damage = None if part.damage is None else part.damage.of(t, tried)
                row = {"epoch": done, "stage": part.stage.name, "site": site.name, "action": action}
                row |= {name: finite_or_none(value[t]) for name, value in measures.items()}
                rows.append({**row, "damage": None if damage is None else damage.mean})
        return rows

    def is_final(self, done: int) -> bool:
        """Whether the plan changes no more after `done` epochs."""
        return done >= self._scheduled.last

    def step(
        self,
        found: Iterable[StageAnalysis],
        done: int,
        optimizers: Sequence[torch.optim.Optimizer] = (),
    ) -> bool:
        """Add an epoch to the averages, propose a plan, and remove what is due by now.

        Args:
            found: the analysis of the epoch, by stage.
            done: number of epochs done.
            optimizers: of the network; they forget the removed parameters.

        Returns: whether there is a new plan.

        Raises:
            PlanError: the adapter refuses the plan.
        """
        # every process plans with the statistics of the first
        self.network.average(broadcast(tuple(found)))
        config, analysis = self.config, self.analysis
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
        if due <= len(self.removed) and not self.is_final(done):
            return False
        skipped = due_part(
            self._proposed,
            analysis,
            due,
            planner=config.planner,
            action=config.action,
            removed=self.removed,
            constraints=self.constraints,
        )
        plan = plan_skipping(
            skipped,
            analysis,
            planner=config.planner,
            action=config.action,
            constraints=self.constraints,
            epoch=done,
            last=self.plan,
        )
        self.network.prune_to(plan, optimizers)
        self.plan = plan
        return True

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
        """Plan, schedule, proposal and averages, as plain values and tensors."""
        return {
            "plan": None if self.plan is None else self.plan.model_dump_json(),
            "schedule": None if self.schedule is None else vars(self.schedule).copy(),
            "proposed": sorted(self._proposed),
            "averages": [average.state_dict() for average in self.network.averages],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the result of `state_dict`. Raises as `rebuild`."""
        self.rebuild(state["plan"])
        self.schedule = None if state["schedule"] is None else Schedule(**state["schedule"])
        self._proposed = frozenset(state["proposed"])
        for average, kept in zip(self.network.averages, state["averages"], strict=True):
            average.load_state_dict(kept)

    @property
    def _scheduled(self) -> Schedule:
        assert self.schedule is not None  # set before the first epoch
        return self.schedule

    def _target(self, fraction: float = 1.0) -> Target:
        return Target(skip=fraction * self.config.skip, concentration=self.config.concentration)


def skipped_by(plan: SkipPlan | None) -> Names:
    """The sites whose retrieval a plan removes."""
    return frozenset() if plan is None else frozenset(plan.changes)

"""GradualPruning: how far a network is pruned at a point of its training, and the next step."""

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
from ela_probe.pruning.prune import actions_of
from ela_probe.system.arrays import Floats
from ela_probe.system.processes import broadcast
from ela_probe.training.ela.config import ELAConfig, Schedule
from ela_probe.training.ela.nested_plans import (
    Names,
    best_part,
    draw_positions,
    plan_skipping,
    proposal,
    skip_count,
)
from ela_probe.training.ela.network import Network


class GradualPruning:
    """The way of a network from unpruned to its final plan.

    Args:
        module: what trains the network, as yet unpruned.
        given: the network, where it is not the first that an adapter knows.
        provenance: what is known of model and data, for the plans.

    Attributes:
        network: the network. plan: what is in force, in terms of the network as it was at first;
            None before the first step. schedule: None until it is set.

    Raises:
        ModelError: no part of the module has layer attention.
        PlanError: the network can't be pruned so, or not by so much.
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
        self._final = skip_count(config.skip, self.network.stages, self.constraints)
        for action in {config.action, "skip"} if config.stochastic else {config.action}:
            self.network.try_out(action)
        self.plan: SkipPlan | None = None
        self.schedule: Schedule | None = None
        self._proposed: Names = frozenset()

    @property
    def sites(self) -> int:
        """How many retrievals there were at first."""
        return sum(len(stage.sites) for stage in self.network.stages)

    @property
    def removed(self) -> Names:
        """The sites whose retrieval is not formed any more."""
        return skipped_by(self.plan)

    @property
    def analysis(self) -> Analysis:
        """The averages over epochs, of all sites. Raises AnalysisError before the first."""
        parts = tuple(average.analysis() for average in self.network.averages)
        provenance = self.provenance.model_copy(
            update={"split": "train", "samples": max(part.samples for part in parts)}
        )
        return Analysis(parts, provenance, self._target())

    def is_final(self, done: int) -> bool:
        """Whether the plan stays from so many epochs on."""
        return done >= self._scheduled.last

    def step(
        self,
        found: Iterable[StageAnalysis],
        done: int,
        optimizers: Sequence[torch.optim.Optimizer] = (),
    ) -> bool:
        """Take in an epoch's statistics, propose, remove what is due after so many epochs.

        Returns: whether there is a new plan.

        Raises:
            PlanError: the adapter refuses it.
        """
        self.network.fold(broadcast(tuple(found)))  # so that all processes plan alike
        config, analysis = self.config, self.analysis
        self._proposed = proposal(
            analysis,
            self._final,
            planner=config.planner,
            before=self._proposed,
            removed=self.removed,
            hysteresis=config.hysteresis,
            constraints=self.constraints,
        )
        waits = config.stochastic and not self.is_final(done)
        due = 0 if waits else math.floor(self._scheduled.part(done) * self._final + 0.5)
        if due <= len(self.removed) and not self.is_final(done):
            return False
        skipped = best_part(
            self._proposed,
            analysis,
            due,
            planner=config.planner,
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
        self.network.become(actions_of(plan, self.network.stages), optimizers)
        self.plan = plan
        return True

    def scores(self, done: int) -> list[Floats]:
        """By stage each site's probability to be skipped in a step, after so many epochs.

        Empty where nothing is skipped at random.
        """
        part = self._scheduled.part(done)
        known = all(average.seen for average in self.network.averages)
        if not (self.config.stochastic and known and part) or self.is_final(done):
            return []
        target = self._target(part)
        return [skip_scores(stage.quantiles, target) for stage in self.analysis.stages]

    def draw(self, scores: Sequence[Floats], epoch: int, batch: int) -> list[str]:
        """The sites that a step skips. The seed, the epoch and the batch say which."""
        random = np.random.default_rng([self.config.seed, epoch, batch])
        return [
            stage.sites[t].name
            for stage, of_stage in zip(self.network.stages, scores, strict=True)
            for t in draw_positions(of_stage, self.constraints, random)
        ]

    def rebuild(self, text: str | None) -> None:
        """Prune the network to what it was under a plan that was saved.

        Args:
            text: the plan as JSON; None where there was none.

        Raises:
            PlanError: it was made for other sites.
            CheckpointError: the network is pruned further than that.
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
            self.network.become(actions_of(plan, self.network.stages))
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
        """Go on from what `state_dict` gave. Raises as `rebuild`."""
        self.rebuild(state["plan"])
        self.schedule = None if state["schedule"] is None else Schedule(**state["schedule"])
        self._proposed = frozenset(state["proposed"])
        for average, kept in zip(self.network.averages, state["averages"], strict=True):
            average.load_state_dict(kept)

    @property
    def _scheduled(self) -> Schedule:
        assert self.schedule is not None  # set before the first epoch
        return self.schedule

    def _target(self, part: float = 1.0) -> Target:
        return Target(skip=part * self.config.skip, concentration=self.config.concentration)


def skipped_by(plan: SkipPlan | None) -> Names:
    """The names of all sites that a plan changes."""
    return frozenset() if plan is None else frozenset(plan.changes)

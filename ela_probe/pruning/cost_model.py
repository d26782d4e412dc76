"""CostModel: how long a training step takes under any plan, as a small validated JSON file.

It is linear in the numbers of retrievals that a plan keeps, skips and lets recur.
`pruning.measure_costs` measures one.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from pydantic import Field, model_validator

from ela_probe.errors import PlanError
from ela_probe.evaluation.comparison import Machine
from ela_probe.sites import (
    FORMED,
    Action,
    Kind,
    Stage,
    check_same_sites,
    drop_unread,
)
from ela_probe.system.json_documents import JsonDocument
from ela_probe.system.validation import Finite, Name, Strict

Actions = Mapping[str, Action]
LONGEST = 1e9  # seconds of a training step, so that sums of them are finite


class Seconds(Strict):
    """Seconds of a training step. lower, upper: the quartiles over the rounds."""

    value: Finite = Field(ge=0, le=LONGEST)
    lower: Finite
    upper: Finite

    def is_noise(self, rounds: int) -> bool:
        """Whether it can't be told from 0: at most two standard errors of the median over `rounds`.

        The standard error is 1.253 σ / √rounds, with σ the interquartile range / 1.349, as for
        normal noise. Fewer than four rounds tell nothing.
        """
        error = 1.253 / 1.349 * (self.upper - self.lower) / math.sqrt(rounds)
        return rounds < 4 or self.value <= 2 * error


class Terms(NamedTuple):
    """The counts that a stage's time is linear in, over all its sites but the first.

    keep, skip, recur: numbers of sites; a skipped site counts if something reads its source.
    source: the sources of all kept sites together. start: the sources, together, of the recurring
    sites that continue a kept site rather than another recurring one. affine: the number of
    stand-ins; such a site also counts as skipped if something reads its source.
    """

    keep: int
    skip: int
    recur: int
    source: int
    start: int
    affine: int


class SiteChoices(Strict):
    """A site, and the actions that the model's adapter can do there if all other sites are kept."""

    name: Name
    sources: int = Field(ge=1)
    actions: tuple[Action, ...]


class StageCosts(Strict):
    """Seconds that an action adds to a step, compared with dropping the site.

    With n sources left, a kept site costs keep + source · n. A recurring site costs recur, and
    start · n more where it continues a kept one. A stand-in costs affine more than skipping. None:
    not measured, because the adapter refuses the action, no plan can contain it, or it never occurs
    apart from an earlier term.

    recur_after_skip: whether a site can recur when the site before it is not formed.
    carried_over: as in `Stage`.
    """

    name: Name
    kind: Kind
    carried_over: bool
    recur_after_skip: bool
    sites: tuple[SiteChoices, ...] = Field(min_length=1)
    keep: Seconds | None = None
    source: Seconds | None = None
    skip: Seconds | None = None
    recur: Seconds | None = None
    start: Seconds | None = None
    affine: Seconds | None = None

    def terms(self, actions: Actions) -> Terms:
        """The counts under these actions. As in `prune`, a source that nothing reads is dropped."""
        asked: list[Action] = [actions.get(site.name, "keep") for site in self.sites]
        chosen = drop_unread(
            ["skip" if action == "affine" else action for action in asked],
            carried_over=self.carried_over,
        )
        source, start, dropped = 0, 0, 0
        follows_kept = True  # whether the last site that was formed is a kept one
        for site, action in zip(self.sites[1:], chosen[1:], strict=True):
            dropped += action == "drop"
            source += (site.sources - dropped) * (action == "keep")
            start += (site.sources - dropped) * (action == "recur" and follows_kept)
            if action in FORMED:
                follows_kept = action == "keep"
        keep, skip, recur = (chosen[1:].count(a) for a in ("keep", "skip", "recur"))
        return Terms(keep, skip, recur, source, start, asked[1:].count("affine"))

    def seconds(self, actions: Actions) -> float:
        """Seconds that the retrievals after the first add to a step.

        Raises:
            PlanError: an action that was not measured.
        """
        total = 0.0
        for name, count in self.terms(actions)._asdict().items():
            cost: Seconds | None = getattr(self, name)
            if cost is None and count and name in ("keep", "skip", "recur", "affine"):
                raise PlanError(
                    f"the costs of the action {name!r} in {self.name} were not measured; measure "
                    "again with `ela-probe costs`, or plan with another action"
                )
            total += 0.0 if cost is None else count * cost.value
        return total


class CostModel(JsonDocument):
    """How long a training step of a model takes under any plan.

    unpruned: the whole model's step, as measured. base: the step with only the first retrieval of
    every stage. error: the largest relative difference between a measured and a predicted step.
    """

    NAMED = "the costs"
    EXPECTED = "a file that `ela-probe costs` wrote"
    INVALID = "holds no valid costs"
    ERROR = PlanError

    schema_version: Literal[1] = 1
    fingerprint: str
    model: Name | None = None
    machine: Machine
    batch_shape: tuple[int, ...]
    rounds: int
    ela_probe: str
    unpruned: Seconds
    base: Seconds
    error: Finite
    stages: tuple[StageCosts, ...]

    @model_validator(mode="after")
    def _takes_time(self) -> "CostModel":
        if self.predict({}) <= 0:
            raise ValueError("a training step takes 0 seconds; expected more")
        return self

    def _repr_html_(self) -> str:
        from ela_probe.pruning.rich_display import costs_html

        return costs_html(self)

    def predict(self, actions: Actions) -> float:
        """Seconds of a training step. actions: by site name; all other sites are kept.

        Raises:
            PlanError: an action that was not measured.
        """
        return self.base.value + sum(stage.seconds(actions) for stage in self.stages)

    def check_sites(self, stages: Sequence[Stage]) -> None:
        """Raise PlanError, listing the differences, unless measured on a model with these sites."""
        check_same_sites(
            self.stages,
            self.fingerprint,
            stages,
            known="the costs",
            claim="were measured on another model",
            model=self.model,
            found="the analysis",
            advice="Run `ela-probe costs` on the checkpoint that was analysed",
        )

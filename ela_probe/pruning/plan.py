"""SkipPlan: an action for every retrieval of a model, as a small validated JSON file."""

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from ela_probe.analysis.damage import total
from ela_probe.analysis.ebqm import Target
from ela_probe.errors import PlanError
from ela_probe.sites import (
    FORMED,
    LISTED,
    OPTIONAL,
    Action,
    Kind,
    Stage,
    check_same_sites,
    fingerprint,
)
from ela_probe.system.accessors import Accessor
from ela_probe.system.json_documents import JsonDocument
from ela_probe.system.numbers import finite_or_none
from ela_probe.system.validation import Finite, Name, Strict, explain
from ela_probe.system.versions import __version__


class Estimate(Strict):
    """A mean over samples and its standard error, in nats."""

    mean: Finite
    se: Finite | None = None

    @classmethod
    def total(cls, estimates: Sequence["Estimate"]) -> "Estimate":
        """Of several actions together; the error is a bound (`analysis.damage.total`)."""
        mean, se = total([(e.mean, math.nan if e.se is None else e.se) for e in estimates])
        return cls(mean=mean, se=finite_or_none(se))


class MeasuredLoss(Estimate):
    """A change of the loss that was measured, in nats: over how many samples, and of which split.

    The standard error is that of the difference of the two losses of a sample.
    """

    samples: int = Field(ge=1)
    split: str


class FitSummary(Strict):
    """A fitted Beta distribution of the u of a stage or site."""

    n: int
    alpha: Finite
    beta: Finite
    log_likelihood: Finite
    ks: Finite
    method: Literal["mle", "moments"]


class SitePlan(Strict):
    """A site and its action.

    The divergences are those from the site `reference`: for a kept site the one before it, else
    the last kept site before it (the planner `cost` takes the last one that is kept or recurs).
    They are None for the first site of a stage. Of `signed` weights l2 and cosine are known, the
    distances between mixed values, and of the other kinds kl, shape and mass.
    """

    name: Name
    sources: int = Field(ge=1)
    action: Action
    reference: Name | None = None
    kl: Estimate | None = None
    shape: Estimate | None = None
    mass: Estimate | None = None
    l2: Estimate | None = None
    cosine: Estimate | None = None
    quantile: Finite | None = None
    score: Finite | None = None
    damage: Estimate | None = Field(
        None, description="what the action adds to the loss, as predicted for this site alone"
    )
    stand_in: str | None = Field(
        None, description="of `affine`: the stand-in, from `encode_stand_in`"
    )

    @model_validator(mode="after")
    def _stand_in_known(self) -> "SitePlan":
        if (self.action == "affine") != (self.stand_in is not None):
            raise ValueError(
                f"{self.name} has the action {self.action!r} "
                f"{'without' if self.stand_in is None else 'with'} a stand-in; expected one with "
                "'affine' and with no other action: choose 'affine' with `ela-probe plan`, from an "
                "analysis with damage"
            )
        if self.stand_in is not None:
            decode_stand_in(self.stand_in)
        return self


def encode_stand_in(coefficients: NDArray[np.float32]) -> str:
    """Coefficients [rows, channels] as text: the number of rows, a colon, float32 in base64."""
    content = np.ascontiguousarray(coefficients, dtype="<f4").tobytes()
    return f"{len(coefficients)}:{base64.b64encode(content).decode()}"


def decode_stand_in(text: str) -> NDArray[np.float32]:
    """The inverse of `encode_stand_in`. Raises ValueError."""
    try:
        rows, _, content = text.partition(":")
        values = np.frombuffer(base64.b64decode(content, validate=True), dtype="<f4")
        coefficients = values.reshape(int(rows), -1)
    except ValueError as error:
        raise ValueError(
            f"got the stand-in {text[:20]!r}...; expected ROWS:BASE64 of float32 numbers"
        ) from error
    if not coefficients.size or not np.isfinite(coefficients).all():
        raise ValueError("got a stand-in that is empty or not finite; expected finite numbers")
    return coefficients.astype(np.float32)


class StagePlan(Strict):
    """A stage: its sites in order, each with an action, and the fit of its divergences.

    The first site is kept or has a stand-in, unless the kind is in OPTIONAL.
    """

    name: Name
    kind: Kind
    fit: FitSummary | None = None
    sites: tuple[SitePlan, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _first_site_kept(self) -> "StagePlan":
        if self.kind not in OPTIONAL and self.sites[0].action not in ("keep", "affine"):
            raise ValueError(
                f"{self.sites[0].name} is the first site of its stage and can't have the action "
                f"{self.sites[0].action!r}; set it to 'keep' or 'affine'"
            )
        return self


class Constraints(Strict):
    """Guards of a plan.

    max_run: the most retrievals skipped in a row; None for any number. min_keep: the fewest sites
    that are kept in a stage, the first one included. With 0, a stage of `static` or `signed`
    weights may lose all of them.
    """

    max_run: int | None = Field(None, ge=1)
    min_keep: int = Field(1, ge=0)

    def check(self, stage: StagePlan) -> None:
        """Raise ValueError if a stage has too few kept sites or too many skipped in a row."""
        kept = sum(site.action == "keep" for site in stage.sites)
        if kept < min(self.min_keep, len(stage.sites)):
            raise ValueError(
                f"{stage.name} keeps {kept} of {len(stage.sites)} sites, but the plan's own "
                f"constraint min_keep is {self.min_keep}; keep more sites or change min_keep"
            )
        run: list[str] = []
        for site in stage.sites:
            run = [] if site.action in FORMED else [*run, site.name]
            if self.max_run is not None and len(run) > self.max_run:
                raise ValueError(
                    f"{stage.name} skips {len(run)} sites in a row ({', '.join(run)}), but the "
                    f"plan's own constraint max_run is {self.max_run}; keep one of them or change "
                    "max_run"
                )


class Origin(Strict):
    """What a plan was made from."""

    model: Name | None = None
    model_args: dict[str, Any] = Field(default_factory=dict)
    checkpoint_sha256: str | None = None
    data: str | None = None
    split: str | None = None
    samples: int | None = None
    planner: str
    measure: str = "kl"
    seed: int | None = None
    epoch: int | None = Field(None, description="the epoch of the ELA run that ended with it")
    ela_probe: str
    time_budget: Finite | None = Field(
        None, description="the requested share of the unpruned step's time"
    )
    predicted_ratio: Finite | None = Field(
        None, description="the predicted share of the unpruned step's time"
    )
    predicted_seconds: Finite | None = Field(
        None, description="the predicted seconds of a training step"
    )
    timed_on: str | None = Field(None, description="the device that the costs were measured on")
    rounds: int | None = Field(
        None, description="how often damage was measured, on models pruned further each time"
    )
    max_loss: Finite | None = Field(
        None, description="the most that the plan may add to the loss, in nats, as asked for"
    )
    predicted_loss: Estimate | None = Field(
        None,
        description="what the plan adds to the loss, in nats: the sum of the sites' damages, and "
        "of their standard errors, a bound of its own",
    )
    measured_loss: MeasuredLoss | None = Field(
        None,
        description="what the plan as a whole adds to the loss, measured on samples that its "
        "stand-ins were not fitted to",
    )


class SkipPlan(JsonDocument):
    """An action for every site of a model, with the figures that it was chosen by.

    No site occurs twice, the first site of a stage is kept or has a stand-in (unless its kind is in
    OPTIONAL), and the actions obey `constraints`.
    plot: the figure, as a method (`report.accessors.PlanPlots`).
    """

    NAMED = "the plan"
    EXPECTED = "a file that `ela-probe plan` wrote"
    INVALID = "is no valid skip plan"
    ERROR = PlanError
    plot: ClassVar[Accessor] = Accessor()

    schema_version: Literal[1] = 1
    fingerprint: str
    target: Target | None = None
    constraints: Constraints = Constraints()
    origin: Origin
    charge: Finite | None = Field(None, description="total divergence or damage charged, in nats")
    stages: tuple[StagePlan, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _every_site_once(self) -> "SkipPlan":
        seen: dict[str, Action] = {}
        for stage in self.stages:
            for site in stage.sites:
                if site.name in seen:
                    actions = f"{seen[site.name]!r} and {site.action!r}"
                    raise ValueError(
                        f"{site.name} occurs twice, with the actions {actions}; list every site "
                        "once"
                    )
                seen[site.name] = site.action
        return self

    @model_validator(mode="after")
    def _constraints_obeyed(self) -> "SkipPlan":
        for stage in self.stages:
            self.constraints.check(stage)
        return self

    @classmethod
    def for_actions(
        cls,
        stages: Sequence[Stage],
        actions: Mapping[str, Action],
        *,
        origin: Origin | None = None,
        figures: Mapping[str, Mapping[str, Any]] | None = None,
        fits: Mapping[str, FitSummary | None] | None = None,
        target: Target | None = None,
        constraints: Constraints = Constraints(),
        charge: float | None = None,
    ) -> "SkipPlan":
        """A plan with these actions, in which all other sites are kept.

            SkipPlan.for_actions(discover(model).stages, {"stages.0.2.retrieval": "skip"})

        Args:
            stages: of the model, as `discover` or an analysis holds them.
            actions: by site name.
            origin: what the plan was made from; when None, by a planner called "manual".
            figures: by site name, further fields of `SitePlan`. fits: by stage name.

        Raises:
            PlanError: an unknown site or action, or the plan breaks a rule of `SkipPlan`.
        """
        figures, fits = figures or {}, fits or {}
        names = [site.name for stage in stages for site in stage.sites]
        if unknown := [name for name in actions if name not in names]:
            raise PlanError(f"no site is called {unknown[0]!r}; expected one of {', '.join(names)}")
        try:
            return cls(
                fingerprint=fingerprint(stages),
                target=target,
                constraints=constraints,
                origin=origin or Origin(planner="manual", ela_probe=__version__),
                charge=charge,
                stages=tuple(
                    StagePlan(
                        name=stage.name,
                        kind=stage.kind,
                        fit=fits.get(stage.name),
                        sites=tuple(
                            SitePlan(
                                name=site.name,
                                sources=site.sources,
                                action=actions.get(site.name, "keep"),
                                **figures.get(site.name, {}),
                            )
                            for site in stage.sites
                        ),
                    )
                    for stage in stages
                ),
            )
        except ValidationError as error:
            raise PlanError(f"no valid skip plan: {explain(error)}") from error

    def __repr__(self) -> str:
        changes = [f"{name}: {action}" for name, action in self.changes.items()]
        listed = ", ".join(changes[:LISTED]) or "all are kept"
        more = f", and {len(changes) - LISTED} more" if len(changes) > LISTED else ""
        share = f"{len(self.skipped)} of {len(self.actions)} retrievals not formed"
        return f"SkipPlan({self.origin.planner}: {share}; {listed}{more})"

    def __str__(self) -> str:
        return repr(self)

    def _repr_html_(self) -> str:
        from ela_probe.pruning.rich_display import plan_html

        return plan_html(self)

    @property
    def actions(self) -> dict[str, Action]:
        """The action of every site by name."""
        return {site.name: site.action for stage in self.stages for site in stage.sites}

    @property
    def skipped(self) -> list[str]:
        """The names of the sites whose retrieval is not formed."""
        return [name for name, action in self.actions.items() if action not in FORMED]

    @property
    def stand_ins(self) -> dict[str, NDArray[np.float32]]:
        """The coefficients of the stand-ins by site name (see `models.stand_in.StandIn`)."""
        return {
            site.name: decode_stand_in(site.stand_in)
            for stage in self.stages
            for site in stage.sites
            if site.stand_in is not None
        }

    @property
    def changes(self) -> dict[str, Action]:
        """The actions other than `keep`, by site name."""
        return {name: action for name, action in self.actions.items() if action != "keep"}

    @property
    def share(self) -> float:
        """The share of all retrievals that is not formed."""
        return len(self.skipped) / len(self.actions)

    def check_sites(self, stages: Sequence[Stage], *, found: str = "the model") -> None:
        """Raise PlanError, listing the differences, unless the plan was made for these sites.

        Args:
            stages: of a model or an analysis. found: where they come from, for the message.
        """
        check_same_sites(
            self.stages,
            self.fingerprint,
            stages,
            known="the plan",
            claim="was made for another model",
            model=self.origin.model,
            found=found,
            advice="Analyse this checkpoint and plan again",
        )

"""ELAConfig: the settings of ELA training, checked; Schedule: the share that is due by epoch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from ela_probe.errors import OptionError
from ela_probe.pruning.planners import SkipAction
from ela_probe.system.validation import Settings

Planner = Literal["score", "budget", "damage"]
USUAL_SHARE = 0.3
USUAL_INTERVAL = 100  # batches from one probed batch to the next
# What a state of a version that lacked these settings did.
BEFORE = {"regrow": False}
FEWEST_PROBED = 2  # probed batches in a short epoch, if it has that many


class ELAConfig(Settings):
    """Settings of ELA training."""

    TITLE: ClassVar[str] = "ELA settings"

    loss: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="instead of a ramp: from the warm-up on, every epoch removes as much as is "
        "predicted to raise the loss by so many nats at most",
    )
    time: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of the unpruned training step's time to reach, at the least predicted "
        "loss change; with loss, in as many epochs as that takes",
    )
    costs: Path | None = Field(
        None,
        description="what `ela-probe costs` wrote for this model, for time; default: measured when "
        "the warm-up ends",
    )
    regrow: bool = Field(
        False,
        description="with loss or time, and affine: until the freeze a removed retrieval may come "
        "back, with the parameters that it had, if its absence is predicted to cost more by now",
    )
    skip: float | None = Field(
        default_factory=lambda given: USUAL_SHARE if is_by_ramp(given) else None,
        gt=0,
        lt=1,
        description="share of all retrievals to skip in the end; default: 0.3, or with loss or "
        "time any share",
    )
    warmup: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="epochs before the first skip, or a part of the first epoch, such as 0.25; "
        "default: a tenth of the epochs",
    )
    ramp: int | None = Field(
        None, ge=1, description="epochs in which the share grows, linearly; default: a fifth"
    )
    freeze: int | None = Field(
        None,
        ge=1,
        description="epoch after which the plan stays; default: when the ramp ends, or with loss "
        "or time after four fifths of the epochs",
    )
    planner: Planner = Field(
        default_factory=lambda given: "score" if is_by_ramp(given) else "damage",
        description="score (EBQM; the default), budget (least total divergence) or damage (least "
        "predicted loss change, from the gradients of training; the default with loss or time)",
    )
    action: SkipAction = Field(
        default_factory=lambda given: "skip" if is_by_ramp(given) else "affine",
        description="what becomes of a retrieval: skip (the default), drop, recur, or affine (a "
        "scale and a shift per channel take its place and train on; the default with loss or time)",
    )
    decay: float = Field(
        0.7, ge=0, lt=1, description="weight of the past epochs in the averages over epochs"
    )
    hysteresis: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="a site replaces a proposed one if it is better by this fraction",
    )
    max_run: int | None = Field(
        None, ge=1, description="most retrievals skipped in a row; default: any number"
    )
    min_keep: int = Field(1, ge=1, description="fewest retrievals kept in a stage")
    concentration: float = Field(
        4.0, gt=0, description="concentration of the target of the skip scores"
    )
    every: int | None = Field(
        None, ge=1, description="probe one batch of this many; default: 100, fewer in short epochs"
    )
    stochastic: bool = Field(
        False, description="true: until the freeze skip at random, by score, without removing"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="seed of stochastic skipping")

    @property
    def measures_damage(self) -> bool:
        """Whether damage is measured, or stand-ins are fitted."""
        return self.planner == "damage" or self.action == "affine"

    @property
    def by_ramp(self) -> bool:
        """Whether the share of skipped retrievals grows over a ramp, not by loss or time."""
        return is_by_ramp(vars(self))

    @property
    def mean_score(self) -> float:
        """The mean of the skip scores in the end: the share to skip, where it is given."""
        return USUAL_SHARE if self.skip is None else self.skip

    @model_validator(mode="after")
    def _fits(self) -> "ELAConfig":
        warmup = self.warmup
        if warmup is not None and warmup > 1 and not warmup.is_integer():
            raise ValueError(
                f"warmup: got {warmup:g}, expected whole epochs, or a part of the first one"
            )
        if self.freeze is not None and self.freeze < (warmup or 1):
            raise ValueError(f"freeze {self.freeze} comes before the warm-up ({warmup:g}) ends")
        if self.costs is not None and self.time is None:
            raise ValueError("costs: only a run with time=... uses them")
        if self.regrow and (self.by_ramp or self.action != "affine"):
            raise ValueError("regrow needs loss or time, and action=affine")
        if self.by_ramp:
            return self
        if self.ramp is not None or self.stochastic:
            raise ValueError(
                "with loss or time the removals follow the predicted loss change; leave out ramp "
                "and stochastic"
            )
        if self.planner != "damage" or self.action not in ("skip", "affine"):
            raise ValueError(
                f"loss and time need planner=damage and action=skip or affine, got "
                f"planner={self.planner} and action={self.action}"
            )
        return self

    @classmethod
    def parse(cls, text: str) -> "ELAConfig":
        """Read `skip=0.5,warmup=10`.

        Raises:
            OptionError: as `of`, and if the text is no such list or names a setting twice.
        """
        settings: dict[str, str] = {}
        for part in text.split(","):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if not (name and equals and value):
                raise OptionError(
                    f"ELA settings: got {part.strip()!r}, expected name=value, separated by commas "
                    f"as in skip=0.5,warmup=10; the names are {', '.join(cls.model_fields)}"
                )
            if name in settings:
                raise OptionError(f"ELA settings: got {name} twice, expected it once")
            settings[name] = value
        return cls.of(**settings)

    def schedule(self, epochs: int | None) -> "Schedule":
        """The schedule of a run of `epochs` epochs; None if their number is not known.

        Raises:
            OptionError: no epoch would train with the final plan, or none would skip at random.
        """
        if epochs is None and (self.warmup is None or not (self.freeze or self.ramp)):
            raise OptionError(
                "ELA: the trainer has no max_epochs; set warmup and ramp in epochs, or with loss "
                "or time warmup and freeze"
            )
        warmup = self.warmup or max(1, round((epochs or 0) / 10))
        ramp = (self.ramp or max(1, round((epochs or 0) / 5))) if self.by_ramp else 1
        last: float = warmup + ramp - 1
        if not self.by_ramp:
            last = self.freeze or max(warmup, (epochs or 0) * 4 // 5)
        elif self.freeze is not None:
            last = self.freeze if self.stochastic else min(last, self.freeze)
        if last < warmup:
            raise OptionError(
                f"ELA: freeze {last:g} comes before the warm-up of {warmup:g} epochs ends; raise "
                "freeze, or lower warmup"
            )
        if self.stochastic and last == warmup:
            raise OptionError(
                f"ELA: stochastic skipping would start after epoch {last:g}, when the plan is "
                "fixed: raise ramp or freeze"
            )
        if epochs is not None and last >= epochs:
            raise OptionError(
                f"ELA: the plan is final after epoch {last:g} of {epochs}, so that no epoch trains "
                "with it: lower warmup, ramp or freeze, or train for more epochs"
            )
        return Schedule(warmup, ramp, last)

    def probe_every(self, batches: float) -> int:
        """Batches from one probed batch to the next in an epoch of `batches` batches (or infinity).

        At least one batch is probed.
        """
        if self.every is not None:
            return int(min(self.every, max(1, batches)))
        if batches >= FEWEST_PROBED * USUAL_INTERVAL:
            return USUAL_INTERVAL
        return max(1, int(batches) // FEWEST_PROBED)


def is_by_ramp(settings: Mapping[str, Any]) -> bool:
    """Whether these settings of ELA name neither a loss nor a time."""
    return settings.get("loss") is None and settings.get("time") is None


@dataclass(frozen=True)
class Schedule:
    """When retrievals are removed. Epochs count from 1.

    warmup: epochs before the first removal, or a part of the first epoch. ramp: epochs in which the
    share grows. last: the epoch that ends with the final plan, if loss or time was not reached
    earlier.
    """

    warmup: float
    ramp: int
    last: float

    def first_batches(self, batches: float) -> int | None:
        """The batches of the first epoch before the first removal; None: it comes after an epoch.

        Args:
            batches: of an epoch, or infinity.

        Raises:
            OptionError: the warm-up is a part of an epoch of unknown length.
        """
        if self.warmup >= 1:
            return None
        if math.isinf(batches):
            raise OptionError(
                f"ELA: a warm-up of {self.warmup:g} epochs needs the number of batches of an "
                "epoch, and the data loader has no length; set warmup to 1 or more"
            )
        first = math.ceil(self.warmup * batches)
        return first if first < batches else None

    def fraction(self, epoch: float) -> float:
        """The fraction of the final share that is due after so many epochs, from 0 to 1."""
        if epoch < self.warmup:
            return 0.0
        return min(1.0, (min(epoch, self.last) - self.warmup + 1) / self.ramp)

"""ELAConfig: the settings of ELA training, checked; Schedule: the share that is due by epoch."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from ela_probe.errors import OptionError
from ela_probe.pruning.planners import SkipAction
from ela_probe.system.validation import Settings

Planner = Literal["score", "budget", "damage"]
USUAL_INTERVAL = 100  # batches from one probed batch to the next
FEWEST_PROBED = 2  # probed batches in a short epoch, if it has that many


class ELAConfig(Settings):
    """Settings of ELA training."""

    TITLE: ClassVar[str] = "ELA settings"

    skip: float = Field(0.3, gt=0, lt=1, description="share of all retrievals to skip in the end")
    warmup: int | None = Field(
        None, ge=1, description="epochs before the first skip; default: a tenth of them"
    )
    ramp: int | None = Field(
        None, ge=1, description="epochs in which the share grows, linearly; default: a fifth"
    )
    freeze: int | None = Field(
        None, ge=1, description="epoch after which the plan stays; default: when the ramp ends"
    )
    planner: Planner = Field(
        "score",
        description="score (EBQM), budget (least total divergence) or damage (least predicted "
        "loss change, from the gradients of training)",
    )
    action: SkipAction = Field(
        "skip",
        description="what becomes of a retrieval: skip, drop, recur, or affine (a scale and a "
        "shift per channel take its place and train on)",
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

    @model_validator(mode="after")
    def _fits(self) -> "ELAConfig":
        if self.freeze is not None and self.freeze < (self.warmup or 1):
            raise ValueError(f"freeze {self.freeze} comes before the warm-up ({self.warmup}) ends")
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
        if epochs is None and (self.warmup is None or self.ramp is None):
            raise OptionError("ELA: the trainer has no max_epochs; set warmup and ramp in epochs")
        warmup = self.warmup or max(1, round((epochs or 0) / 10))
        ramp = self.ramp or max(1, round((epochs or 0) / 5))
        last = self.freeze or warmup + ramp - 1
        if not self.stochastic:
            last = min(last, warmup + ramp - 1)
        if last < warmup:
            raise OptionError(
                f"ELA: freeze {last} comes before the warm-up of {warmup} epochs ends; raise "
                "freeze, or lower warmup"
            )
        if self.stochastic and last == warmup:
            raise OptionError(
                f"ELA: stochastic skipping would start after epoch {warmup}, when the plan is "
                "fixed: raise ramp or freeze"
            )
        if epochs is not None and last >= epochs:
            raise OptionError(
                f"ELA: the plan is final after epoch {last} of {epochs}, so that no epoch trains "
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


@dataclass(frozen=True)
class Schedule:
    """When retrievals are removed. Epochs count from 1.

    warmup: epochs before the first removal. ramp: epochs in which the share grows. last: the epoch
    that ends with the final plan.
    """

    warmup: int
    ramp: int
    last: int

    def fraction(self, epoch: int) -> float:
        """The fraction of the final share that is due at the end of an epoch, from 0 to 1."""
        if epoch < self.warmup:
            return 0.0
        return min(1.0, (min(epoch, self.last) - self.warmup + 1) / self.ramp)

"""ELAConfig: the settings of ELA training, checked; and when which share is skipped."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from ela_probe.errors import OptionError
from ela_probe.system.validation import Settings

OFTEN = 100  # batches from one probed batch to the next, where an epoch has enough of them
LEAST = 2  # probed batches an epoch, where it has so many


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
    planner: Literal["score", "budget"] = Field(
        "score", description="score (EBQM) or budget (least total divergence)"
    )
    action: Literal["skip", "drop", "recur"] = Field(
        "skip", description="skip, drop or recur: what becomes of a retrieval"
    )
    decay: float = Field(
        0.7, ge=0, lt=1, description="weight of the past epochs in the averages over epochs"
    )
    hysteresis: float = Field(
        0.1, ge=0, lt=1, description="by which fraction a site must be better than a proposed one"
    )
    max_run: int | None = Field(None, ge=1, description="retrievals skipped in a row; default: any")
    min_keep: int = Field(1, ge=1, description="retrievals kept in a stage")
    concentration: float = Field(4.0, gt=0, description="of the target of the skip scores")
    every: int | None = Field(
        None, ge=1, description="probe a batch of so many; default: 100, in short epochs fewer"
    )
    stochastic: bool = Field(
        False, description="true: until the freeze skip at random, by score, and remove nothing"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="of stochastic skipping")

    @model_validator(mode="after")
    def _fits(self) -> "ELAConfig":
        if self.freeze is not None and self.freeze < (self.warmup or 1):
            raise ValueError(f"freeze {self.freeze} comes before the warm-up ({self.warmup}) ends")
        return self

    @classmethod
    def parse(cls, text: str) -> "ELAConfig":
        """From `skip=0.5,warmup=10`.

        Raises:
            OptionError: as `of`, and where the text is no such list or names a setting twice.
        """
        settings: dict[str, str] = {}
        for part in text.split(","):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if not (name and equals and value):
                raise OptionError(
                    f"ELA settings: {part.strip()!r} came; expected name=value with commas between "
                    f"them, as in skip=0.5,warmup=10. There are {', '.join(cls.model_fields)}"
                )
            if name in settings:
                raise OptionError(f"ELA settings: {name} came twice; give it once")
            settings[name] = value
        return cls.of(**settings)

    def schedule(self, epochs: int | None) -> "Schedule":
        """When what happens in a run of so many epochs (None: nobody knows how many).

        Raises:
            OptionError: no epoch would train with the final plan, or none skips at random.
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
                f"ELA: stochastic skipping begins after epoch {warmup} and the plan is fixed then; "
                "raise ramp or freeze"
            )
        if epochs is not None and last >= epochs:
            raise OptionError(
                f"ELA: the plan is final after epoch {last} of {epochs}, so that no epoch trains "
                "with it; lower warmup, ramp or freeze, or train for more epochs"
            )
        return Schedule(warmup, ramp, last)

    def probe_every(self, batches: float) -> int:
        """Batches from one probed batch to the next in an epoch of so many (maybe infinitely).

        One is probed in any case.
        """
        if self.every is not None:
            return int(min(self.every, max(1, batches)))
        return OFTEN if batches >= LEAST * OFTEN else max(1, int(batches) // LEAST)


@dataclass(frozen=True)
class Schedule:
    """warmup, ramp: epochs. last: the epoch that ends with the final plan. Epochs count from 1."""

    warmup: int
    ramp: int
    last: int

    def part(self, epoch: int) -> float:
        """The part of the final share that is due at the end of an epoch, from 0 to 1."""
        if epoch < self.warmup:
            return 0.0
        return min(1.0, (min(epoch, self.last) - self.warmup + 1) / self.ramp)

"""Predicted damage: what an action at a site adds to the loss, to second order.

With y what a site hands on, y^a what it would hand on under action a from the same inputs,
δ = y^a − y, and g the gradient of a sample's loss with respect to y, c = ⟨g, δ⟩ is the first-order
change of the sample's loss, and

    damage(site, a) = mean over samples of  c + ½ n c²

n is the number of predictions whose mean the loss of a sample is: 1 for an image with a label, the
number of tokens for a sequence. ½nc² stands for the second-order term, with the Hessian replaced by
the outer product of the gradient (empirical Fisher) of −log p of all n predictions together, which
is n times the loss: ½(nc)² / n. In nats for a cross entropy. The formula is this project's own.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ela_probe.errors import AnalysisError
from ela_probe.sites import OPTIONAL, Action, Kind
from ela_probe.system.arrays import Floats

MEASURED: tuple[Action, ...] = ("skip", "affine", "recur")
# Under these the retrieval is not formed.
REMOVING: tuple[Action, ...] = ("skip", "affine")
SUMS = ("c", "c²", "c + ½nc²", "(c + ½nc²)²")  # over samples


class DamageEstimate(NamedTuple):
    """The predicted loss change of one action at one site, in nats.

    mean = first + second, with first the mean of c and second that of ½nc². se, first_se: standard
    errors over samples; NaN for a single sample.
    """

    mean: float
    se: float
    first: float
    first_se: float
    second: float


@dataclass(frozen=True)
class StageDamage:
    """The damage of every action at the T sites of a stage.

    Attributes:
        samples: n. sums: [T, actions, 4] Σ over samples of `SUMS`; the actions are those of
            MEASURED, and NaN stands for an action that the adapter does not offer there.
        norms: [T] mean over samples of the norm of the retrieval relative to what is handed on
            without it, ‖y − y^skip‖ / ‖y^skip‖; NaN where that is unknown.
        stand_ins: [T] coefficients of the stand-ins that `affine` was measured with; None where
            there is none.
    """

    samples: int
    sums: Floats
    norms: Floats
    stand_ins: tuple[NDArray[np.float32] | None, ...]

    def __post_init__(self) -> None:
        sites = len(self.stand_ins)
        shapes = {value.ndim for value in self.stand_ins if value is not None}
        fits = self.sums.shape == (sites, len(MEASURED), len(SUMS)) and shapes <= {2}
        if not fits or self.norms.shape != (sites,):
            raise AnalysisError(
                f"got sums of damage {self.sums.shape} and norms {self.norms.shape}, expected "
                f"{(sites, len(MEASURED), len(SUMS))} and {(sites,)}, and stand-ins of two "
                "dimensions; run `ela-probe analyze` again"
            )
        if np.isinf(self.sums).any() or self.samples < 1:
            raise AnalysisError(
                f"got sums of damage that are infinite, or of {self.samples} samples; expected "
                "finite sums of at least one sample; run `ela-probe analyze` again"
            )

    def actions(self, t: int) -> tuple[Action, ...]:
        """The actions that were measured at site t."""
        known = np.isfinite(self.sums[t, :, 0])
        return tuple(action for action, k in zip(MEASURED, known, strict=True) if k)

    def of(self, t: int, action: Action) -> DamageEstimate | None:
        """The damage of an action at site t; None where it was not measured.

        `drop` has that of `skip`: it is only right where no later site reads the source.
        """
        name = "skip" if action == "drop" else action
        if name not in MEASURED:
            return None
        c, cc, d, dd = (float(x) for x in self.sums[t, MEASURED.index(name)])
        if math.isnan(c):
            return None
        n = self.samples
        first, mean = c / n, d / n
        return DamageEstimate(
            mean, _error(mean, dd / n, n), first, _error(first, cc / n, n), mean - first
        )

    def cheapest(
        self, t: int, allowed: Collection[Action], *, kind: Kind = "softmax"
    ) -> tuple[Action, DamageEstimate] | None:
        """The allowed action of least damage at site t; None where none was measured.

        The first site of a stage can't be skipped, unless its kind is in OPTIONAL; a stand-in can
        take its place.
        """
        skips = t > 0 or kind in OPTIONAL
        found = [(a, e) for a in allowed if (skips or a == "affine") and (e := self.of(t, a))]
        return min(found, key=lambda pair: pair[1].mean, default=None)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """As arrays by name, for a file."""
        stand_ins = {
            f"stand_in/{t}": value for t, value in enumerate(self.stand_ins) if value is not None
        }
        return {
            "damage_samples": np.array(self.samples),
            "damage_sums": self.sums,
            "norms": self.norms,
            **stand_ins,
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]], sites: int) -> "StageDamage | None":
        """The inverse of `arrays`, for T = `sites`; None where they hold no damage."""
        if "damage_sums" not in arrays:
            return None
        sums = arrays["damage_sums"]
        stand_ins = tuple(arrays.get(f"stand_in/{t}") for t in range(sites))
        return cls(int(arrays["damage_samples"]), sums, arrays["norms"], stand_ins)


def _error(mean: float, square: float, n: int) -> float:
    """The standard error of a mean, from the mean square."""
    return math.sqrt(max(0.0, square - mean * mean) / (n - 1)) if n > 1 else math.nan


def total(estimates: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The damage of several actions together and a bound of its standard error, in nats.

    Args:
        estimates: of each action the mean and its standard error.

    The estimates come from the same samples, so that their errors may all point the same way: the
    bound is the sum of their standard errors.
    """
    return math.fsum(mean for mean, _ in estimates), math.fsum(se for _, se in estimates)

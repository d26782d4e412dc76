"""StageViews: divergences of neighbours by head and by class, and the most unusual samples."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ela_probe.errors import AnalysisError
from ela_probe.system.arrays import Floats

# The arrays in this order.
ARRAYS = ("head_kl", "class_kl", "class_counts", "unusual_positions", "unusual_kl")


@dataclass(frozen=True)
class StageViews:
    """The adjacent kl of a stage's T sites, kl(t−1, t) in nats, seen more closely.

    A view that was not recorded has length 0. The first site has no site before it, and zeros.

    Attributes:
        head_kl: [H, T] mean over samples of each head; empty where there is one head.
        class_kl: [C, T] mean over the samples of each class. class_counts: [C] how many these are;
            0 for a class that does not occur, whose row is 0.
        unusual_positions: [k] where the samples are in the data set whose mean over the sites is
            farthest from that of all samples, the farthest first. unusual_kl: [k] their means.

    Raises AnalysisError if a divergence is NaN or infinite, or lengths differ.
    """

    head_kl: Floats
    class_kl: Floats
    class_counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    unusual_positions: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    unusual_kl: Floats = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        same = len(self.class_kl) == len(self.class_counts)
        same &= len(self.unusual_kl) == len(self.unusual_positions)
        if not same or not all(np.isfinite(values).all() for values in self.arrays().values()):
            raise AnalysisError(
                "the divergences by head, class or sample are NaN, infinite or of other lengths "
                "than expected; run `ela-probe analyze` again"
            )

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]], sites: int) -> "StageViews | None":
        """The inverse of `arrays`, for T = `sites`; None where there is none of them."""
        if not set(ARRAYS) & arrays.keys():
            return None
        found = [arrays.get(name, np.zeros(0, np.int64)) for name in ARRAYS]
        head_kl, class_kl = (values.reshape(-1, sites) for values in found[:2])
        return cls(head_kl, class_kl, *(values.reshape(-1) for values in found[2:]))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Every array by its name."""
        return {name: getattr(self, name) for name in ARRAYS}

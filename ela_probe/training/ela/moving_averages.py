"""Exponential averages of a stage's statistics over the epochs of a training run.

Every epoch ends with an analysis of a sample of its batches. The averages are of its means, not of
the exact sums behind them, and stand on the stage as it was found first: a site that is removed
keeps its last figures, and those that are left go on.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ela_probe.analysis.beta_fit import BINS, BetaStatistics
from ela_probe.analysis.result import DIVERGENCES, StageAnalysis
from ela_probe.errors import AnalysisError
from ela_probe.sites import Stage
from ela_probe.system.arrays import Floats

NOWHERE = -2  # a site that was never seen has no predecessor; the first one has -1


class StageAverage:
    """The averages of one stage of T sites with S sources at the most.

    An average starts as the first epoch's value; then it is decay · average + (1 − decay) · value.
    It starts over where it would mix unlike things: a pair when the sources of one of its sites
    changed (one was dropped), a site's adjacent u also when the site before it was removed.

    Args:
        stage: as it is before anything is skipped.
        decay: from 0 (the last epoch alone) to less than 1.
    """

    def __init__(self, stage: Stage, *, decay: float) -> None:
        self.stage, self.decay = stage, decay
        sites = len(stage.sites)
        self._samples = np.full(1, np.nan)
        self._rows = np.full(sites, np.nan)
        self._weights = np.full((sites, stage.sizes[-1]), np.nan)
        # variances of the means in the place of their standard errors
        self._divergences = {name: np.full((sites, sites), np.nan) for name in DIVERGENCES}
        self._beta = np.full((sites, 5 + BINS), np.nan)  # per row: zeros, log u, ...; histogram
        self._sources = np.zeros(sites, dtype=np.int64)
        self._before = np.full(sites, NOWHERE, dtype=np.int64)

    @property
    def seen(self) -> bool:
        """Whether there is an epoch to speak of."""
        return bool((self._before != NOWHERE).any())

    def fold(self, found: StageAnalysis) -> None:
        """Take in an epoch's analysis of the sites that are left."""
        positions = {site.name: t for t, site in enumerate(self.stage.sites)}
        there = np.array([positions[site.name] for site in found.stage.sites])
        sources = np.array(found.stage.sizes)
        before = np.array([-1, *there[:-1]])
        goes_on = self._sources[there] == sources
        follows = goes_on & (self._before[there] == before)
        self._sources[there] = sources
        self._before[:] = NOWHERE
        self._before[there] = before

        self._samples = self._mixed(self._samples, np.array([float(found.samples)]))
        weights = np.zeros((len(there), self._weights.shape[1]))
        weights[:, : found.weights.shape[1]] = found.weights
        self._weights[there] = self._mixed(self._weights[there], weights, goes_on[:, None])
        pairs, both = np.ix_(there, there), np.logical_and.outer(goes_on, goes_on)
        for name, value in found.divergences.items():
            power = 2 if name.endswith("_se") else 1
            self._divergences[name][pairs] = self._mixed(
                self._divergences[name][pairs], value**power, both, power
            )
        counts = np.array([float(beta.n) for beta in found.beta])
        self._rows[there] = self._mixed(self._rows[there], counts, follows)
        self._beta[there] = self._mixed(
            self._beta[there], np.stack([per_row(b) for b in found.beta]), follows[:, None]
        )

    def _mixed(
        self, old: Floats, new: Floats, goes_on: Any = True, power: int = 1
    ) -> NDArray[np.float64]:
        average = self.decay**power * old + (1 - self.decay) ** power * new
        return np.where(goes_on & ~np.isnan(old), average, new)

    def analysis(self) -> StageAnalysis:
        """The averages as an analysis of the whole stage.

        What counts (samples, rows, the n of a site) is that of an average epoch. A site that is
        gone has the divergences that it had last, and no adjacent u (n = 0).

        Raises:
            AnalysisError: nothing was taken in.
        """
        if not self.seen:
            raise AnalysisError("no epoch has ended yet: there are no averages to speak of")
        beta = tuple(
            statistics(row, 0 if before == NOWHERE else round(float(rows)))
            for row, rows, before in zip(self._beta, self._rows, self._before, strict=True)
        )
        return StageAnalysis(
            stage=self.stage,
            samples=round(float(self._samples[0])),
            rows=max(b.n for b in beta),
            weights=np.nan_to_num(self._weights),
            divergences={
                name: np.sqrt(value) if name.endswith("_se") else value.copy()
                for name, value in self._divergences.items()
            },
            beta=beta,
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Everything as tensors."""
        return {name: torch.from_numpy(value.copy()) for name, value in self._arrays().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state_dict` gave."""
        for name, value in self._arrays().items():
            value[...] = state[name].cpu().numpy()

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {
            "samples": self._samples,
            "rows": self._rows,
            "weights": self._weights,
            "beta": self._beta,
            "sources": self._sources,
            "before": self._before,
            **self._divergences,
        }


def per_row(beta: BetaStatistics) -> Floats:
    """[5 + bins] sums and histogram over n; zeros where there is no u."""
    sums = np.array([beta.zeros, beta.log_u, beta.log_1mu, beta.u, beta.uu, *beta.histogram])
    return np.asarray(sums / max(beta.n, 1), dtype=np.float64)


def statistics(row: Floats, n: int) -> BetaStatistics:
    """The inverse of `per_row`."""
    sums = np.nan_to_num(row) * n
    zeros, log_u, log_1mu, u, uu = (float(value) for value in sums[:5])
    return BetaStatistics(n, zeros, log_u, log_1mu, u, uu, sums[5:])

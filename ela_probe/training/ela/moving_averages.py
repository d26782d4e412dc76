"""Exponential averages of a stage's statistics over the epochs of a training run.

Every epoch ends with an analysis of a sample of its batches. Its means are averaged, not the exact
sums behind them. The averages are those of the unpruned stage: a removed site keeps its last
values, and the other sites continue.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ela_probe.analysis.beta_fit import BINS, BetaStatistics
from ela_probe.analysis.damage import MEASURED, SUMS, StageDamage
from ela_probe.analysis.result import DIVERGENCES, StageAnalysis
from ela_probe.errors import AnalysisError
from ela_probe.sites import Stage
from ela_probe.system.arrays import Floats

ABSENT = -2  # the predecessor of a site that the last epoch did not have; the first site has -1


class StageAverage:
    """The averages of one stage of T sites with S sources at the most.

    An average starts as the first epoch's value; then it is decay · average + (1 − decay) · value.
    It starts again where it would mix different quantities: that of a pair when the sources of one
    of its sites changed (one was dropped), that of a site's adjacent u also when the site before it
    was removed.

    Args:
        stage: the stage before anything is skipped.
        decay: from 0 (only the last epoch counts) to less than 1.
    """

    def __init__(self, stage: Stage, *, decay: float) -> None:
        self.stage, self.decay = stage, decay
        sites = len(stage.sites)
        self._samples = np.full(1, np.nan)
        self._rows = np.full(sites, np.nan)
        self._weights = np.full((sites, stage.sizes[-1]), np.nan)
        # variances of the means in place of their standard errors
        self._divergences = {name: np.full((sites, sites), np.nan) for name in DIVERGENCES}
        # mean and variance of the mean, as of the divergences
        self._entropy, self._entropy_se = np.full((2, sites), np.nan)
        # per row: zeros, log u, ..., then the histogram
        self._beta = np.full((sites, 5 + BINS), np.nan)
        self._sources = np.zeros(sites, dtype=np.int64)
        self._before = np.full(sites, ABSENT, dtype=np.int64)
        # means over samples of the terms of damage, and of the relative norms
        self._damage = np.full((sites, len(MEASURED), len(SUMS)), np.nan)
        self._norms = np.full(sites, np.nan)
        self._stand_ins: list[NDArray[np.float32] | None] = [None] * sites

    @property
    def seen(self) -> bool:
        """Whether an epoch was added."""
        return bool((self._before != ABSENT).any())

    def update(self, found: StageAnalysis) -> None:
        """Add an epoch's analysis of the remaining sites."""
        positions = {site.name: t for t, site in enumerate(self.stage.sites)}
        kept = np.array([positions[site.name] for site in found.stage.sites])
        sources = np.array(found.stage.sizes)
        before = np.array([-1, *kept[:-1]])
        continues = self._sources[kept] == sources
        follows = continues & (self._before[kept] == before)
        self._sources[kept] = sources
        self._before[:] = ABSENT
        self._before[kept] = before

        self._samples = self._averaged(self._samples, np.array([float(found.samples)]))
        weights = np.zeros((len(kept), self._weights.shape[1]))
        weights[:, : found.weights.shape[1]] = found.weights
        self._weights[kept] = self._averaged(self._weights[kept], weights, continues[:, None])
        pairs, both = np.ix_(kept, kept), np.logical_and.outer(continues, continues)
        for name, value in found.divergences.items():
            power = 2 if name.endswith("_se") else 1
            self._divergences[name][pairs] = self._averaged(
                self._divergences[name][pairs], value**power, both, power
            )
        self._entropy[kept] = self._averaged(self._entropy[kept], found.entropy, continues)
        self._entropy_se[kept] = self._averaged(
            self._entropy_se[kept], found.entropy_se**2, continues, 2
        )
        counts = np.array([float(beta.n) for beta in found.beta])
        self._rows[kept] = self._averaged(self._rows[kept], counts, follows)
        self._beta[kept] = self._averaged(
            self._beta[kept], np.stack([row_means(b) for b in found.beta]), follows[:, None]
        )
        if found.damage is not None:
            means = found.damage.sums / found.damage.samples
            self._damage[kept] = self._averaged(self._damage[kept], means)
            self._norms[kept] = self._averaged(self._norms[kept], found.damage.norms)
            for t, stand_in in zip(kept, found.damage.stand_ins, strict=True):
                self._stand_ins[t] = stand_in

    def _averaged(
        self, old: Floats, new: Floats, continues: Any = True, power: int = 1
    ) -> NDArray[np.float64]:
        average = self.decay**power * old + (1 - self.decay) ** power * new
        return np.where(continues & ~np.isnan(old), average, new)

    def analysis(self) -> StageAnalysis:
        """The averages as an analysis of the whole stage.

        Counts (samples, rows, the n of a site) are those of an average epoch. A removed site has
        the divergences and the damage that it had last, and no adjacent u (n = 0). Stand-ins are
        those of the last epoch.

        Raises:
            AnalysisError: no epoch was added.
        """
        if not self.seen:
            raise AnalysisError("no epoch has ended yet, so that there are no averages")
        beta = tuple(
            beta_statistics(row, 0 if before == ABSENT else round(float(rows)))
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
            damage=self._damage_so_far(),
            entropy=self._entropy.copy(),
            entropy_se=np.sqrt(self._entropy_se),
        )

    def _damage_so_far(self) -> StageDamage | None:
        if np.isnan(self._damage).all():
            return None
        samples = max(1, round(float(self._samples[0])))
        return StageDamage(
            samples, self._damage * samples, self._norms.copy(), tuple(self._stand_ins)
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Everything as tensors."""
        stand_ins = {
            f"stand_in/{t}": value for t, value in enumerate(self._stand_ins) if value is not None
        }
        arrays = {**self._arrays(), **stand_ins}
        return {name: torch.from_numpy(value.copy()) for name, value in arrays.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from the result of `state_dict`."""
        for name, value in self._arrays().items():
            if name in state:  # one that an older version wrote has no damage
                value[...] = state[name].cpu().numpy()
        for t in range(len(self._stand_ins)):
            kept = state.get(f"stand_in/{t}")
            self._stand_ins[t] = None if kept is None else kept.cpu().numpy()

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {
            "samples": self._samples,
            "rows": self._rows,
            "weights": self._weights,
            "beta": self._beta,
            "sources": self._sources,
            "before": self._before,
            "damage": self._damage,
            "norms": self._norms,
            "entropy": self._entropy,
            "entropy_se": self._entropy_se,
            **self._divergences,
        }


def row_means(beta: BetaStatistics) -> Floats:
    """[5 + bins] sums and histogram over n; zeros where there is no u."""
    sums = np.array([beta.zeros, beta.log_u, beta.log_1mu, beta.u, beta.uu, *beta.histogram])
    return np.asarray(sums / max(beta.n, 1), dtype=np.float64)


def beta_statistics(row: Floats, n: int) -> BetaStatistics:
    """The inverse of `row_means`."""
    sums = np.nan_to_num(row) * n
    zeros, log_u, log_1mu, u, uu = (float(value) for value in sums[:5])
    return BetaStatistics(n, zeros, log_u, log_1mu, u, uu, sums[5:])

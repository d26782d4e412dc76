"""DamageMetric: sums of the loss changes of a model's sites, streamed in fixed memory."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from ela_probe.analysis.damage import MEASURED, SUMS
from ela_probe.analysis.exact_sums import carry, exact_sum, value_of

# Exact sums hold totals up to 2^39; no loss change of a sample comes near this share of it.
LIMIT = 2.0**30


class DamageMetric(Metric):
    """Exact sums over samples, so that merged halves equal the whole (see `exact_sums`).

    Args:
        sites: the names of all sites.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    samples: Tensor
    sums: Tensor
    norms: Tensor
    broken: Tensor

    def __init__(self, sites: Sequence[str]) -> None:
        super().__init__()
        self.sites = tuple(sites)
        count = len(self.sites)
        for name, shape in {
            "samples": (),
            "sums": (2, count, len(MEASURED), len(SUMS)),
            "norms": (2, count),
            "broken": (count,),
        }.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, changes: Tensor, norms: Tensor, predictions: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            changes: [sites, actions, samples] c in nats, float64.
            norms: [sites, samples] relative norms of the retrievals, float64.
            predictions: [samples] how many predictions the loss of each sample is the mean of;
                None: one each.
        """
        n = 1.0 if predictions is None else predictions.to(changes)
        damage = changes + n * changes.square() / 2
        fine = damage.isfinite() & (damage.abs() < LIMIT)
        self.broken += (~fine).sum(dim=(1, 2))
        changes, damage = changes.where(fine, 0.0), damage.where(fine, 0.0)
        norms = norms.nan_to_num(0.0, 0.0, 0.0)
        terms = torch.stack([changes, changes.square(), damage, damage.square()], dim=2)
        self.samples += changes.shape[-1]
        self.sums += exact_sum(terms)
        self.norms += exact_sum(norms.clamp_max(LIMIT))
        carry(self.sums)
        carry(self.norms)

    def compute(self) -> dict[str, Tensor]:
        """samples, sums [sites, actions, 4], norms [sites] (means over samples), broken [sites]."""
        return {
            "samples": self.samples.clone(),
            "sums": value_of(self.sums),
            "norms": value_of(self.norms) / self.samples,
            "broken": self.broken.clone(),
        }

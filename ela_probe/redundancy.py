"""RedundancyMetric: the divergences of one stage's retrievals, streamed in fixed memory."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from ela_probe import divergence
from ela_probe.beta import BINS, LOGIT_LIMIT, ZERO
from ela_probe.errors import AnalysisError, ProbeError

# Sums are kept as two integers, so that they are exact and their order doesn't matter: multiples
# of 2^-24 in the first, the remainder in multiples of 2^-60 in the second.
HIGH, LOW = 2.0**24, 2.0**36

PAIR_MEASURES = ("kl", "mass", "shape", "js")


class RedundancyMetric(Metric):
    """How alike the retrievals of one stage are.

    Every state is a sum of integers or a count: two halves of a stream merged equal the whole
    stream exactly, in one process or many. Memory is O(T² + T · bins), whatever the number of
    samples.

    Args:
        sizes: the number of sources of each of the T sites, never falling.
        names: the sites' names, for messages.

    Raises:
        ProbeError: fewer than one site, or sizes that fall.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    samples: Tensor
    rows: Tensor
    weight_sums: Tensor
    pair_sums: Tensor
    beta_sums: Tensor
    zeros: Tensor
    histogram: Tensor

    def __init__(
        self, sizes: Sequence[int], *, names: Sequence[str] | None = None, **kwargs: object
    ) -> None:
        super().__init__(**kwargs)
        if not sizes or sizes[0] < 1 or list(sizes) != sorted(sizes):
            raise ProbeError(
                f"sites have {list(sizes)} sources; expected at least one site and a number of "
                "sources that never falls along the stage"
            )
        self.sizes = tuple(sizes)
        self.names = tuple(names) if names else tuple(f"site {t}" for t in range(len(sizes)))
        sites, sources = len(sizes), sizes[-1]
        for name, dims in {
            "samples": (),
            "rows": (),
            "weight_sums": (2, sites, sources),
            "pair_sums": (2, 2, len(PAIR_MEASURES), sites, sites),  # integer, power, measure, i, j
            "beta_sums": (2, 4, sites),  # integer; log u, log(1-u), u, u²; site
            "zeros": (sites,),
            "histogram": (sites, BINS),
        }.items():
            self.add_state(name, torch.zeros(dims, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, retrievals: Sequence[Tensor]) -> None:
        """Add a batch.

        Args:
            retrievals: per site a tensor [samples, ..., sources_t] of non-negative weights; the
                axes between (heads, tokens) are alike for all sites. Rows are renormalised.

        Raises:
            ProbeError: other shapes, or weights that are negative, NaN or infinite.
        """
        self._check(retrievals)
        samples = retrievals[0].shape[0]
        weights = divergence.pad(
            [divergence.normalise(w.reshape(-1, w.shape[-1])) for w in retrievals]
        )
        pairs = divergence.pairwise(weights, self.sizes)
        # Heads and tokens of a sample are not independent: a sample's mean is one observation.
        by_sample = torch.stack(
            [
                pair.reshape(samples, -1, *pair.shape[1:]).mean(dim=1)
                for pair in (getattr(pairs, name) for name in PAIR_MEASURES)
            ],
            dim=1,
        )
        self.samples += samples
        self.rows += weights.shape[0]
        self._add(self.weight_sums, weights)
        self._add(self.pair_sums, torch.stack([by_sample, by_sample.square()], dim=1))
        if len(self.sizes) > 1:
            self._update_beta(torch.diagonal(pairs.kl, offset=1, dim1=1, dim2=2))

    def _update_beta(self, kl: Tensor) -> None:
        """Adjacent divergences [rows, sites - 1] in nats, of the second site on."""
        u = -torch.expm1(-kl)
        zero = u <= ZERO
        log_u = torch.where(zero, 1.0, u).log()
        self._add(self.beta_sums[:, :, 1:], torch.stack([log_u, -kl, u, u.square()], dim=1))
        self.zeros[1:] += zero.sum(dim=0)
        logit = torch.where(zero, -LOGIT_LIMIT, log_u + kl)
        width = 2 * LOGIT_LIMIT / BINS
        index = ((logit + LOGIT_LIMIT) / width).floor().long().clamp(0, BINS - 1)
        self.histogram[1:].scatter_add_(1, index.T.contiguous(), torch.ones_like(index.T))

    @staticmethod
    def _add(state: Tensor, values: Tensor) -> None:
        """Add Σ over the first axis of `values` to an exact sum; [2, ...] += [rows, ...]."""
        high = (values * HIGH).floor()
        low = ((values * HIGH - high) * LOW).round().long().sum(dim=0) + state[1]
        carry = low >> 36
        state[0] += high.long().sum(dim=0) + carry
        state[1] = low - (carry << 36)

    @staticmethod
    def _value(state: Tensor) -> Tensor:
        carry = state[1] >> 36
        high, low = state[0] + carry, state[1] - (carry << 36)
        return high.double() / HIGH + low.double() / (HIGH * LOW)

    def compute(self) -> dict[str, Tensor]:
        """The redundancy of the stage, all float64 or int64.

        Returns:
            samples, rows: counts. weights: [T, S] mean weights. For each of kl, mass, shape and
            js: [T, T] mean over samples and, under `<name>_se`, its standard error (NaN for one
            sample), in nats, upper triangle. kl_of_means: [T, T]. beta_sums: [4, T] (log u,
            log(1-u), u, u²), zeros: [T], histogram: [T, bins] of the adjacent u of each site.

        Raises:
            AnalysisError: nothing was recorded.
        """
        samples = self.samples.double()
        if not self.samples:
            raise AnalysisError(
                "no forward pass was recorded; run the model on some batches inside the probe"
            )
        result = {
            "samples": self.samples.clone(),
            "rows": self.rows.clone(),
            "weights": self._value(self.weight_sums) / self.rows,
            "beta_sums": self._value(self.beta_sums),
            "zeros": self.zeros.clone(),
            "histogram": self.histogram.clone(),
        }
        first, second = self._value(self.pair_sums) / samples
        degrees = torch.where(samples > 1, samples - 1, torch.nan)
        errors = ((second - first.square()).clamp_min(0.0) / degrees).sqrt()
        for index, name in enumerate(PAIR_MEASURES):
            result[name] = first[index]
            result[f"{name}_se"] = errors[index]
        means = torch.stack(
            [
                torch.nn.functional.pad(
                    divergence.normalise(row[:size]), (0, self.sizes[-1] - size)
                )
                for row, size in zip(result["weights"], self.sizes, strict=True)
            ]
        )
        result["kl_of_means"] = divergence.pairwise(means[None], self.sizes).kl[0]
        return result

    def _check(self, retrievals: Sequence[Tensor]) -> None:
        if len(retrievals) != len(self.sizes):
            raise ProbeError(f"{len(retrievals)} retrievals came; expected {len(self.sizes)}")
        outer = retrievals[0].shape[:-1]
        for name, size, weights in zip(self.names, self.sizes, retrievals, strict=True):
            if weights.dim() < 2 or weights.shape != (*outer, size):
                raise ProbeError(
                    f"{name}: weights of shape {list(weights.shape)} came; expected "
                    f"{[*outer, size]} (samples, ..., sources)"
                )
            if not bool((weights >= 0).all()) or not bool(weights.isfinite().all()):
                raise ProbeError(
                    f"{name}: weights are NaN, infinite or negative; the model's parameters or "
                    "inputs are broken (look for NaN in the checkpoint), or these are no weights"
                )

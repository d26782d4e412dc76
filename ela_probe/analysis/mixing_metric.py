"""MixingMetric: how far apart the mixed values of a stage's sites are, streamed in fixed memory.

It stands in for divergences where weights are no distribution (kind `signed`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from ela_probe.analysis.exact_sums import carry, exact_sum, in_float64, value_of
from ela_probe.analysis.measures import DISTANCES
from ela_probe.analysis.metric import means_and_errors
from ela_probe.errors import AnalysisError, ProbeError

# How many numbers of each site are multiplied at once: 187 sites then take 100 MB in float64.
BLOCK = 2**16
# A squared distance below this share of the squared norms is rounding error and counts as 0.
ROUNDING = 1e-13


class MixingMetric(Metric):
    """The distances between the mixed values m_t = Σ_s w_t(s) v_s of the T sites of a stage.

    For every pair i < j and sample, over all numbers of the sample:

        l2     = ‖m_j − m_i‖ / max(‖m_i‖, ‖m_j‖)      from 0 to 2
        cosine = 1 − ⟨m_i, m_j⟩ / (‖m_i‖ ‖m_j‖)       from 0 to 2

    Two zero vectors have the distance 0, and a zero vector has the cosine distance 1 from any
    other. Every state is a sum of integers, so that merged halves of a stream equal the whole.

    Args:
        sizes: the number of sources of each site, in non-decreasing order.
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

    def __init__(
        self, sizes: Sequence[int], *, names: Sequence[str] | None = None, **kwargs: object
    ) -> None:
        super().__init__(**kwargs)
        if not sizes or sizes[0] < 1 or list(sizes) != sorted(sizes):
            raise ProbeError(
                f"got sites with {list(sizes)} sources; expected at least one site, and numbers of "
                "sources that never decrease along the stage"
            )
        self.sizes = tuple(sizes)
        self.names = tuple(names) if names else tuple(f"site {t}" for t in range(len(sizes)))
        sites = len(sizes)
        for name, dims in {
            "samples": (),
            "rows": (),
            "weight_sums": (2, sites, sizes[-1]),
            "pair_sums": (2, 2, len(DISTANCES), sites, sites),  # integer, power, measure, i, j
        }.items():
            self.add_state(name, torch.zeros(dims, dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self, weights: Sequence[Tensor], values: Sequence[Tensor], mask: Tensor | None = None
    ) -> None:
        """Add a batch.

        Args:
            weights: per site [rows, ..., sources_t], of either sign. One row where no input
                changes them.
            values: per site its mixed values [samples, ...], of the same shape for all sites.
            mask: [samples, tokens], False for tokens that don't count; values are then
                [samples, tokens, ...]. A sample without any token doesn't count either.

        Raises:
            ProbeError: other shapes, or numbers that are NaN or infinite.
        """
        self._check(weights, values)
        if mask is not None and values[0].shape[:2] == mask.shape:
            real = mask.any(dim=1)
            hidden = ~mask[real][(...,) + (None,) * (values[0].dim() - 2)]
            values = [v[real].masked_fill(hidden, 0.0) for v in values]
        for sample in range(len(values[0])):
            found = distances([v[sample] for v in values])
            self.pair_sums += exact_sum(torch.stack([found, found.square()])[..., None])
            carry(self.pair_sums)
        self.samples += len(values[0])
        self.rows += weights[0][..., 0].numel()
        for t, w in enumerate(weights):
            by_source = in_float64(w.detach()).reshape(-1, w.shape[-1]).T
            self.weight_sums[:, t, : w.shape[-1]] += exact_sum(by_source.contiguous())
        carry(self.weight_sums)

    def check(self) -> None:
        """Nothing: broken numbers are refused by `update`."""

    def compute(self) -> dict[str, Tensor]:
        """The distances of the stage, float64.

        Returns:
            samples, rows: counts. weights: [T, S] mean weights, 0 beyond the sources of a site.
            l2, cosine: [T, T] means over samples, upper triangle, and, under `<name>_se`, their
            standard errors (NaN for one sample).

        Raises:
            AnalysisError: nothing was recorded.
        """
        if not self.samples:
            raise AnalysisError(
                "no forward pass was recorded; run the model on some batches inside the probe"
            )
        means, errors = means_and_errors(self.pair_sums, self.samples.double())
        result = {
            "samples": self.samples.clone(),
            "rows": self.rows.clone(),
            "weights": value_of(self.weight_sums) / self.rows,
        }
        for index, name in enumerate(DISTANCES):
            result[name] = means[index]
            result[f"{name}_se"] = errors[index]
        return result

    def _check(self, weights: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        if not len(weights) == len(values) == len(self.sizes):
            raise ProbeError(
                f"got {len(weights)} weights and {len(values)} mixed values; expected "
                f"{len(self.sizes)} of each"
            )
        for name, size, w, v in zip(self.names, self.sizes, weights, values, strict=True):
            if w.dim() < 2 or w.shape[-1] != size:
                raise ProbeError(
                    f"{name}: got weights of shape {list(w.shape)}; expected [..., {size}]"
                )
            if v.shape != values[0].shape:
                raise ProbeError(
                    f"{name}: got mixed values of shape {list(v.shape)}; expected "
                    f"{list(values[0].shape)}, as at {self.names[0]}"
                )
            if not (w.isfinite().all() and v.isfinite().all()):
                raise ProbeError(
                    f"{name}: weights or mixed values are NaN or infinite; the model's parameters "
                    "or inputs are broken (look for NaN in the checkpoint)"
                )


def distances(values: Sequence[Tensor]) -> Tensor:
    """l2 and cosine of every pair of one sample's mixed values, [2, T, T], upper triangle.

    They come from the inner products of all pairs, in float64.
    """
    sites = len(values)
    flat = [v.detach().flatten() for v in values]
    products = torch.zeros(sites, sites, dtype=torch.float64, device=flat[0].device)
    for start in range(0, flat[0].numel(), BLOCK):
        part = in_float64(torch.stack([v[start : start + BLOCK] for v in flat]))
        products = products.to(part.device) + part @ part.T
    squares = products.diagonal()
    both = squares[:, None] + squares[None, :]
    apart = both - 2 * products
    apart = torch.where(apart > ROUNDING * both, apart, 0.0)
    larger = torch.maximum(squares[:, None], squares[None, :])
    l2 = torch.where(larger > 0, apart / larger, 0.0).sqrt()
    norms = (squares[:, None] * squares[None, :]).sqrt()
    cosine = torch.where(norms > 0, 1 - products / norms, (larger > 0).double())
    return torch.stack([l2, cosine.clamp(0.0, 2.0)]).triu(1)

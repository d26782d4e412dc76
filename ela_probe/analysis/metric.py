"""RedundancyMetric: the divergences of one stage's retrievals, streamed in fixed memory."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from ela_probe.analysis import divergence
from ela_probe.analysis.beta_fit import BINS, LOGIT_LIMIT, ZERO
from ela_probe.analysis.exact_sums import carry, exact_sum, value_of
from ela_probe.analysis.packing import Scratch, chunks
from ela_probe.analysis.sample_sums import sample_sums
from ela_probe.analysis.sample_views import (
    MOST_CLASSES,
    Known,
    class_means,
    class_sums,
    farthest,
    farthest_of_all,
    nobody,
    unusual,
)
from ela_probe.errors import AnalysisError, ProbeError

PAIR_MEASURES = ("kl", "mass", "shape", "js")

# On an accelerator, how many batches are added between two checks for broken weights.
CHECK_EVERY = 128


class RedundancyMetric(Metric):
    """How alike the retrievals of one stage are.

    Every state is a sum of integers, a count or a list of extremes. So the merged halves of a
    stream equal the whole stream exactly, in one process or several. Memory is
    O(T² + T · (bins + heads)) for any number of samples, and O(T · MOST_CLASSES) with `by_sample`.
    An update never waits for an accelerator: broken weights are counted there, and the count is
    read now and then and before every result.

    Args:
        sizes: the number of sources of each of the T sites, in non-decreasing order.
        names: the sites' names, for messages.
        heads: how many heads the second axis of the weights has; 1 for none. Its length is a
            multiple of this, head by head.
        by_sample: also sum the divergences of neighbours by class, and keep the samples that are
            farthest from the mean, as far as updates tell classes and positions.
        check_every: check for broken weights once in so many updates; 1 checks before they are
            added. None: 1 on a CPU, where a check costs nothing, and 128 elsewhere.

    Raises:
        ProbeError: fewer than one site, sizes that fall, or `heads` or `check_every` below 1.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    samples: Tensor
    rows: Tensor
    weight_sums: Tensor
    pair_sums: Tensor
    entropy_sums: Tensor
    beta_sums: Tensor
    zeros: Tensor
    histogram: Tensor
    broken: Tensor
    head_sums: Tensor
    class_sums: Tensor
    class_counts: Tensor
    extremes: Tensor
    pair_places: Tensor
    neighbours: Tensor

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        names: Sequence[str] | None = None,
        heads: int = 1,
        by_sample: bool = False,
        check_every: int | None = None,
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        if not sizes or sizes[0] < 1 or list(sizes) != sorted(sizes):
            raise ProbeError(
                f"got sites with {list(sizes)} sources; expected at least one site, and numbers of "
                "sources that never decrease along the stage"
            )
        if check_every is not None and check_every < 1:
            raise ProbeError(f"got check_every={check_every}; expected 1 or more updates")
        if heads < 1:
            raise ProbeError(f"got heads={heads}; expected 1 or more")
        self.sizes, self.check_every, self.heads = tuple(sizes), check_every, heads
        self.by_sample = by_sample and len(sizes) > 1
        self.names = tuple(names) if names else tuple(f"site {t}" for t in range(len(sizes)))
        sites, sources = len(sizes), sizes[-1]
        for name, dims in {
            "samples": (),
            "rows": (),
            "weight_sums": (2, sites, sources),
            "pair_sums": (2, 2, len(PAIR_MEASURES), sites, sites),  # integer, power, measure, i, j
            "entropy_sums": (2, 2, sites),  # integer, power, site
            "beta_sums": (2, 4, sites),  # integer; log u, log(1-u), u, u²; site
            "zeros": (sites,),
            "histogram": (sites, BINS),
            "broken": (sites,),  # batches in which weights were negative, NaN or infinite
            **({"head_sums": (2, heads, sites)} if heads > 1 else {}),  # of −kl
            **(
                {
                    "class_sums": (2, MOST_CLASSES + 2, sites),
                    "class_counts": (MOST_CLASSES + 2,),
                }
                if self.by_sample
                else {}
            ),
        }.items():
            self.add_state(name, torch.zeros(dims, dtype=torch.int64), dist_reduce_fx="sum")
        if self.by_sample:
            self.add_state("extremes", nobody(), dist_reduce_fx=farthest_of_all)
        first, second = torch.triu_indices(sites, sites, 1)
        self.register_buffer("pair_places", first * sites + second, persistent=False)
        neighbours = (second - first == 1).nonzero().flatten()
        self.register_buffer("neighbours", neighbours, persistent=False)

    def update(self, retrievals: Sequence[Tensor], known: Known = Known()) -> None:
        """Add a batch.

        Args:
            retrievals: per site a tensor [samples, ..., sources_t] of non-negative weights; the
                axes in between (heads, tokens) are the same for all sites. Rows are renormalised.
            known: classes and positions of the samples; read only with `by_sample`.

        Raises:
            ProbeError: other shapes, or weights that are negative, NaN or infinite; the latter at
                once or later, depending on `check_every`.
        """
        self._check_shapes(retrievals)
        every = self.check_every or (1 if retrievals[0].device.type == "cpu" else CHECK_EVERY)
        sums: dict[str, Tensor] = {}
        bins: list[Tensor] = []
        adjacent: list[Tensor] = []
        scratch = Scratch()
        for chunk in chunks(retrievals):
            part, found, means = self._sums(chunk, scratch, check=every == 1)
            for name, value in part.items():
                sums[name] = sums[name] + value if name in sums else value
            bins.append(found)
            adjacent.append(means)
        self.samples += retrievals[0].shape[0]
        self.rows += retrievals[0][..., 0].numel()
        for name, value in sums.items():
            state = getattr(self, name)
            state += value
            if name.endswith("_sums"):
                carry(state)
        if bins:
            places = torch.cat(bins, dim=1)
            self.histogram[1:].scatter_add_(1, places, torch.ones_like(places))
        if bins and self.by_sample:
            self._add_samples(torch.cat(adjacent, dim=1), known)
        if every > 1 and self._update_count % every == 0:
            self.check()

    def check(self) -> None:
        """Raise ProbeError when any weights so far were negative, NaN or infinite."""
        if bool(self.broken.any()):
            raise self._broken_at(int(self.broken.ne(0).nonzero()[0]))

    def _add_samples(self, adjacent: Tensor, known: Known) -> None:
        """Add divergences of neighbours, [T − 1, samples], by class and by sample."""
        if known.labels is not None:
            class_sums(adjacent, known.labels, self.class_sums, self.class_counts)
            carry(self.class_sums)
        if known.positions is not None:
            found = farthest(adjacent, known.positions)
            self.extremes.copy_(farthest_of_all(torch.stack([self.extremes, found])))

    def _sums(
        self, chunk: Sequence[Tensor], scratch: Scratch, *, check: bool
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """What a few samples add to each state, by its name; bins; kl of neighbours by sample."""
        found = sample_sums(chunk, self.sizes, self.neighbours, scratch, heads=self.heads)
        if check and bool(found.broken.any()):
            raise self._broken_at(int(found.broken.nonzero()[0]))
        # Heads and tokens of a sample are not independent, so a sample's mean is one observation.
        rows = chunk[0][0, ..., 0].numel()
        means = torch.stack([found.kl, found.mass, found.kl - found.mass, found.js]) / rows
        entropy = found.entropy / rows
        sites = len(self.sizes)
        pair_sums = means.new_zeros(2, 2, len(PAIR_MEASURES), sites * sites, dtype=torch.int64)
        pair_sums.index_add_(-1, self.pair_places, exact_sum(torch.stack([means, means.square()])))
        sums, zeros, bins = _beta_sums(found.adjacent, self.heads)
        by_head = {"head_sums": sums[:, 1].transpose(1, 2)} if self.heads > 1 else {}
        return (
            {
                **{name: torch.nn.functional.pad(value, (1, 0)) for name, value in by_head.items()},
                "broken": found.broken.long(),
                "weight_sums": exact_sum(found.weights),
                "pair_sums": pair_sums.unflatten(-1, (sites, sites)),
                "entropy_sums": exact_sum(torch.stack([entropy, entropy.square()])),
                "beta_sums": torch.nn.functional.pad(sums.sum(dim=-1), (1, 0)),
                "zeros": torch.nn.functional.pad(zeros, (1, 0)),
            },
            bins,
            means[0][self.neighbours],
        )

    def compute(self) -> dict[str, Tensor]:
        """The redundancy of the stage, all float64 or int64.

        Returns:
            samples, rows: counts. weights: [T, S] mean weights. For each of kl, mass, shape and
            js: [T, T] mean over samples and, under `<name>_se`, its standard error (NaN for one
            sample), in nats, upper triangle. kl_of_means: [T, T]. entropy, entropy_se: [T] of each
            site's weights, in nats. beta_sums: [4, T] (log u, log(1-u), u, u²), zeros: [T],
            histogram: [T, bins] of the adjacent u of each site. What `StageViews` describes:
            head_kl with several heads; class_kl, class_counts, unusual_positions and unusual_kl
            with `by_sample`.

        Raises:
            AnalysisError: nothing was recorded.
            ProbeError: weights were negative, NaN or infinite.
        """
        samples = self.samples.double()
        if not self.samples:
            raise AnalysisError(
                "no forward pass was recorded; run the model on some batches inside the probe"
            )
        self.check()
        result = {
            "samples": self.samples.clone(),
            "rows": self.rows.clone(),
            "weights": value_of(self.weight_sums) / self.rows,
            "beta_sums": value_of(self.beta_sums),
            "zeros": self.zeros.clone(),
            "histogram": self.histogram.clone(),
        }
        means, errors = means_and_errors(self.pair_sums, samples)
        for index, name in enumerate(PAIR_MEASURES):
            result[name] = means[index]
            result[f"{name}_se"] = errors[index]
        result["entropy"], result["entropy_se"] = means_and_errors(self.entropy_sums, samples)
        mean_weights = divergence.pad(
            [
                divergence.normalise(row[None, :size])
                for row, size in zip(result["weights"], self.sizes, strict=True)
            ]
        )
        result["kl_of_means"] = divergence.pairwise(mean_weights, self.sizes).kl[0]
        if self.heads > 1:
            result["head_kl"] = (0.0 - value_of(self.head_sums)) / (self.rows / self.heads)
        if self.by_sample:
            result |= class_means(self.class_sums, self.class_counts)
            result |= unusual(self.extremes, float(result["kl"].diagonal(1).mean()))
        return result

    def _check_shapes(self, retrievals: Sequence[Tensor]) -> None:
        if len(retrievals) != len(self.sizes):
            raise ProbeError(f"got {len(retrievals)} retrievals; expected {len(self.sizes)}")
        outer = retrievals[0].shape[:-1]
        for name, size, weights in zip(self.names, self.sizes, retrievals, strict=True):
            if weights.dim() < 2 or weights.shape != (*outer, size):
                raise ProbeError(
                    f"{name}: got weights of shape {list(weights.shape)}; expected "
                    f"{[*outer, size]} (samples, ..., sources)"
                )
        if self.heads > 1 and (len(outer) < 2 or outer[1] % self.heads):
            raise ProbeError(
                f"{self.names[0]}: got weights of shape {list(retrievals[0].shape)}; expected a "
                f"second axis whose length is a multiple of {self.heads}, the number of heads"
            )

    def _broken_at(self, site: int) -> ProbeError:
        return ProbeError(
            f"{self.names[site]}: weights are NaN, infinite or negative; the model's parameters "
            "or inputs are broken (look for NaN in the checkpoint), or these are not weights"
        )


def means_and_errors(sums: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
    """Means over samples and their standard errors, each [...], from exact sums [2, 2, ...].

    sums: integer; power 1 or 2.
    """
    first, second = value_of(sums) / samples
    degrees = torch.where(samples > 1, samples - 1, torch.nan)
    return first, ((second - first.square()).clamp_min(0.0) / degrees).sqrt()


def _beta_sums(kl: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """What the fits need of u = 1 − exp(−kl), for adjacent kl [pairs, rows] in nats.

    Returns: exact sums of log u, log(1−u), u and u², [2, 4, pairs, heads]; how many u are zero,
    [pairs]; the histogram's bin of each u, [pairs, rows].
    """
    u = torch.expm1(-kl).neg_()
    zero = u <= ZERO
    log_u = u.masked_fill(zero, 1.0).log_()
    terms = torch.stack([log_u, -kl, u, u.square()])
    sums = exact_sum(terms.unflatten(-1, (heads, kl.shape[-1] // heads)))
    logit = (log_u + kl).masked_fill_(zero, -LOGIT_LIMIT)
    bins = ((logit + LOGIT_LIMIT) / (2 * LOGIT_LIMIT / BINS)).floor_().long().clamp_(0, BINS - 1)
    return sums, zero.sum(dim=1), bins

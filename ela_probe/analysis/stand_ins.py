"""Stand-ins for retrievals: a scale and a shift per channel, fitted by least squares.

A stand-in hands on Σ_k (1 + a_k) ⊙ x_k + b instead of y, where Σ_k x_k is what the site hands on
without its retrieval (`models.stand_in`). So a and b are the regression of r = y − Σ_k x_k on the
x_k by channel, over samples and places, from streamed sums in float64 (design of this project).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ela_probe.adapters.handover import Alternatives, Handover
from ela_probe.analysis.exact_sums import in_float64
from ela_probe.analysis.handover_hooks import HandoverHooks
from ela_probe.forward import call, first_samples, inputs_and_labels, sample_count, undisturbed
from ela_probe.system.memory_format import to_memory_format
from ela_probe.system.nested_tensors import mapped
from ela_probe.system.processes import all_gather, is_first, raise_together
from ela_probe.system.progress import track

# How many samples a fit takes: the least squares of a channel have at most 3 unknowns, and a sample
# has tens or hundreds of places.
FIT_SAMPLES = 128
# The ridge, as a share of the largest second moment of a channel: it only matters for channels
# that are constant, and for terms that are multiples of each other.
RIDGE = 1e-10


@dataclass
class NormalEquations:
    """The sums of a regression by channel, float64.

    count: numbers per channel. moments: [C, K+1, K+1], of the K terms and a constant 1.
    products: [C, K+1], of these with r.
    """

    count: int
    moments: Tensor
    products: Tensor

    @classmethod
    def of(cls, given: Alternatives, channel_axis: int) -> "NormalEquations":
        """The sums of one batch."""
        terms = [in_float64(term) for term in given.terms]
        residual = in_float64(given.output)
        for term in terms:
            residual = residual - term
        axes = [axis for axis in range(residual.ndim) if axis != channel_axis % residual.ndim]
        channels = residual.shape[channel_axis]
        count = residual.numel() // channels
        moments = residual.new_empty(channels, len(terms) + 1, len(terms) + 1)
        products = residual.new_empty(channels, len(terms) + 1)
        for i, term in enumerate(terms):
            for j, other in enumerate(terms[: i + 1]):
                moments[:, i, j] = moments[:, j, i] = (term * other).sum(dim=axes)
            moments[:, i, -1] = moments[:, -1, i] = term.sum(dim=axes)
            products[:, i] = (term * residual).sum(dim=axes)
        moments[:, -1, -1], products[:, -1] = count, residual.sum(dim=axes)
        return cls(count, moments, products)

    def __add__(self, other: "NormalEquations") -> "NormalEquations":
        return NormalEquations(
            self.count + other.count,
            self.moments + other.moments,
            self.products + other.products,
        )

    def solve(self, *, has_shift: bool) -> Tensor:
        """The coefficients [K, C] of a, or [K+1, C] with b in the last row; float32."""
        moments, products = self.moments / self.count, self.products / self.count
        means, mean = moments[:, -1, :-1], products[:, -1:]
        moments, products = moments[:, :-1, :-1], products[:, :-1]
        if has_shift:
            moments = moments - means[:, :, None] * means[:, None, :]
            products = products - means * mean
        largest = float(moments.diagonal(dim1=1, dim2=2).max()) or 1.0
        ridge = RIDGE * largest * torch.eye(moments.shape[1]).to(moments)
        scale = torch.linalg.solve(moments + ridge, products)
        rows = [*scale.unbind(dim=1)]
        if has_shift:
            rows.append(mean[:, 0] - (scale * means).sum(dim=1))
        return torch.stack(rows).float().cpu()


def fit_stand_ins(
    model: nn.Module,
    handovers: Mapping[str, Handover],
    batches: Iterable[Any],
    *,
    device: torch.device | None = None,
    labelled: bool = True,
    inputs: str | Sequence[str] | None = None,
    labels: str | None = None,
    samples: int = FIT_SAMPLES,
    progress: bool = True,
) -> dict[str, Tensor]:
    """Fit a stand-in for every site that may have one, over at most `samples` samples.

    Under torch.distributed every process calls it with its own batches and gets the fit of all.

    Args:
        model: unwrapped; it is run in eval mode. handovers: by site name.
        batches, labelled, inputs, labels: as `analyze` takes them.

    Returns: by site name the coefficients [terms, C] or [terms + 1, C] (`models.stand_in`).
    """
    wanted = {site: h for site, h in handovers.items() if "affine" in h.actions}
    if not wanted:
        return {}
    sums: dict[str, NormalEquations] = {}

    def arrive(site: str, tensors: Sequence[Tensor], y: Tensor) -> None:
        handover = wanted[site]
        for part in slices(tensors):
            found = NormalEquations.of(handover.alternatives(*part), handover.channel_axis)
            sums[site] = sums[site] + found if site in sums else found

    if device is not None:
        model.to(device)
    shown = track(batches, "fitting stand-ins", progress=progress and is_first())
    fields: dict[str, Any] = {"labelled": labelled, "inputs": inputs, "labels": labels}
    with raise_together(), undisturbed(model), HandoverHooks(model, wanted, arrive):
        for given in inputs_of_first(model, shown, samples, **fields):
            call(model, given)
    return {
        site: sum(everywhere[1:], start=everywhere[0]).solve(has_shift=wanted[site].has_shift)
        for site in wanted
        if (everywhere := [found[site] for found in all_gather(sums) if site in found])
    }


def inputs_of_first(
    model: nn.Module, batches: Iterable[Any], samples: int, **fields: Any
) -> Iterator[Any]:
    """The inputs of the first samples, batch by batch, where the model is.

    Args:
        fields: what `inputs_and_labels` takes besides a batch.
    """
    where = next((p.device for p in model.parameters()), torch.device("cpu"))
    done = 0
    for batch in batches:
        given = first_samples(inputs_and_labels(batch, **fields)[0], samples - done)
        done += sample_count(given)
        yield mapped(given, lambda t: to_memory_format(t.to(where), model))
        if done >= samples:
            return


# How many numbers of a tensor are worked on at a time: a few such parts fit into a core's cache.
SLICE = 2**17


def slices(tensors: Sequence[Tensor]) -> Iterable[list[Tensor]]:
    """The same few samples of each tensor at a time."""
    largest = max(tensor[:1].numel() for tensor in tensors)
    step = max(1, SLICE // max(1, largest)) if tensors[0].device.type == "cpu" else 2**30
    yield from map(list, zip(*(tensor.split(step) for tensor in tensors), strict=True))

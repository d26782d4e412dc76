"""Pairwise KL of a stage's retrievals: ours against loops over scipy's and torch's functions.

The loops are timed in two forms: as one would write them, with a call for each pair of rows, on a
few samples and scaled to all; and with a call for each pair of sites, on all samples. Their input
is float64 and normalised already; ours starts from float32.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from numpy.typing import NDArray
from scipy.special import rel_entr
from torch import Tensor

from benchmarks.support import figures
from benchmarks.support.figures import FigurePath
from benchmarks.support.results import JsonPath, publish
from ela_probe.analysis import divergence
from ela_probe.analysis.metric import RedundancyMetric
from ela_probe.evaluation.comparison import Timing
from ela_probe.evaluation.profiling import alternate

MOST_TIME = 1 / 200
MOST_DIFFERENCE = 1e-12

Matrix = NDArray[np.float64]
OURS, WHOLE = "ours, mean_kl", "ours, all of RedundancyMetric"
CALLS, KIND = "rel_entr, a call per row and pair", "rel_entr, a call per pair"
TORCH_CALLS, TORCH_KIND = "F.kl_div, a call per row and pair", "F.kl_div, a call per pair"


def run(
    samples: Annotated[int, typer.Option(min=2)] = 50_000,
    heads: Annotated[int, typer.Option(min=1)] = 4,
    sites: Annotated[int, typer.Option(min=2)] = 18,
    few: Annotated[int, typer.Option(min=1, help="Samples for the loops over rows.")] = 50,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    seed: int = 0,
    json: JsonPath = None,
    figure: FigurePath = None,
) -> None:
    """Time the mean KL of all pairs of retrievals, each way once a round, in turn."""
    generator = torch.Generator().manual_seed(seed)
    few = min(few, samples)
    weights = [
        torch.randn(samples, heads, t + 1, generator=generator).softmax(-1) for t in range(sites)
    ]
    exact = [divergence.normalise(w) for w in weights]
    arrays = [w.numpy() for w in exact]
    part, part_arrays = [w[:few] for w in exact], [w[:few] for w in arrays]
    contestants: dict[str, Callable[[], Matrix]] = {
        OURS: lambda: divergence.mean_kl(weights).numpy(),
        WHOLE: lambda: whole(weights),
        CALLS: lambda: by_row(part_arrays, lambda p, q: rel_entr(p, q).sum()),
        KIND: lambda: by_pair(arrays, lambda p, q: rel_entr(p, q).sum()),
        TORCH_CALLS: lambda: by_row(part, lambda p, q: F.kl_div(q.log(), p, reduction="sum")),
        TORCH_KIND: lambda: by_pair(exact, lambda p, q: F.kl_div(q.log(), p, reduction="sum")),
    }
    found: dict[str, Matrix] = {}

    def kept(name: str) -> Callable[[], None]:
        return lambda: found.update({name: contestants[name]()})

    seconds = alternate({name: kept(name) for name in contestants}, rounds=rounds, warmup=1)
    for name in (CALLS, TORCH_CALLS):
        seconds[name] = [value * samples / few for value in seconds[name]]
    timings = {name: Timing.of(taken, seconds[CALLS]) for name, taken in seconds.items()}
    reference = {
        name: found[CALLS] if name in (CALLS, TORCH_CALLS) else found[KIND] for name in found
    }
    rows: list[dict[str, Any]] = [
        {
            "contestant": name,
            "samples timed": few if name in (CALLS, TORCH_CALLS) else samples,
            "median s": round(timing.median, 4),
            "quartiles s": f"{timing.lower:.4g} to {timing.upper:.4g}",
            "ours / it": timings[OURS].median / timing.median,
            "largest difference": float(np.abs(found[name] - reference[name]).max()),
        }
        for name, timing in timings.items()
    ]
    alike = float(
        np.abs(divergence.mean_kl([w[:few] for w in weights]).numpy() - found[CALLS]).max()
    )
    pairs = sites * (sites - 1) // 2
    size = f"{samples:,} samples x {heads} heads x {sites} sites ({pairs} pairs)"
    title = (
        f"{size}, {rounds} rounds; calls per row and pair timed on {few} samples and multiplied "
        f"by {samples / few:g}"
    )
    ratio = timings[OURS].median / timings[CALLS].median
    verdicts = {
        f"ours takes at most 1/{1 / MOST_TIME:.0f} of the rel_entr loop": ratio <= MOST_TIME,
        f"all results agree to {MOST_DIFFERENCE:g} nats": (
            max(alike, *(row["largest difference"] for row in rows)) <= MOST_DIFFERENCE
        ),
    }
    publish("divergence", {title: rows}, json_path=json, seed=seed, verdicts=verdicts)
    if figure is not None:
        with figures.panels(1, size=(8.0, 3.6)) as (drawn, (axes,)):
            medians = {name: timing.median for name, timing in timings.items()}
            figures.heading(axes, "Pairwise KL of retrievals", size)
            figures.bars(axes, medians, label="seconds (median)", log=True, ours=(OURS, WHOLE))
            figures.save(drawn, figure)
    raise typer.Exit(0 if all(verdicts.values()) else 1)


def whole(weights: Sequence[Tensor]) -> Matrix:
    """All that an analysis reports: four divergences, standard errors, Beta statistics."""
    metric = RedundancyMetric([w.shape[-1] for w in weights])
    metric.update(weights)
    return np.asarray(metric.compute()["kl"])


def by_row(weights: Sequence[Any], kl: Callable[[Any, Any], Any]) -> Matrix:
    """A call for each pair of rows."""
    result = np.zeros((len(weights), len(weights)))
    samples, heads = weights[0].shape[:2]
    for n in range(samples):
        for h in range(heads):
            for j in range(len(weights)):
                q = weights[j][n, h]
                for i in range(j):
                    p = weights[i][n, h]
                    result[i, j] += kl(p, q[: len(p)])
    return result / (samples * heads)


def by_pair(weights: Sequence[Any], kl: Callable[[Any, Any], Any]) -> Matrix:
    """A call for each pair of sites."""
    result = np.zeros((len(weights), len(weights)))
    for j, q in enumerate(weights):
        for i, p in enumerate(weights[:j]):
            result[i, j] = kl(p, q[..., : p.shape[-1]])
    return result / (weights[0].shape[0] * weights[0].shape[1])

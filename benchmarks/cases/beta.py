"""The streamed Beta fit against scipy's fit of all values: time, memory and parameters."""

import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any

import numpy as np
import typer
from scipy import stats

from benchmarks.support import figures
from benchmarks.support.figures import FigurePath
from benchmarks.support.results import JsonPath, publish
from ela_probe.analysis.beta_fit import BetaFit, BetaStatistics, fit_beta
from ela_probe.evaluation.comparison import Timing
from ela_probe.evaluation.profiling import alternate
from ela_probe.system.arrays import Floats

MOST_DIFFERENCE = 1e-6
MOST_GROWTH = 1.02
Parameters = tuple[float, float]


def run(
    values: Annotated[int, typer.Option(min=1000, help="Values in the longest stream.")] = (
        3_400_000
    ),
    batch: Annotated[int, typer.Option(min=2, help="Values in a batch.")] = 20_000,
    alpha: float = 0.6,
    beta: float = 9.0,
    rounds: Annotated[int, typer.Option(min=1)] = 7,
    seed: int = 0,
    json: JsonPath = None,
    figure: FigurePath = None,
) -> None:
    """Fit a stream of values from Beta(alpha, beta), and a hundredth and a tenth of it."""
    lengths = [max(2 * batch, values // 100), max(2 * batch, values // 10), values]
    rows = [
        row
        for length in lengths
        for row in compare(
            Stream(length, batch=batch, alpha=alpha, beta=beta, seed=seed), rounds=rounds
        )
    ]
    own = [row for row in rows if row["fit"] == "ours"]
    theirs = [row for row in rows if row["fit"] == "scipy"]
    growth = own[2]["peak MiB"] / own[1]["peak MiB"]
    verdicts = {
        f"alpha and beta equal scipy's to {MOST_DIFFERENCE:g}": (
            max(row["difference"] for row in own) <= MOST_DIFFERENCE
        ),
        f"ten times the values take at most {MOST_GROWTH} times the memory": growth <= MOST_GROWTH,
    }
    title = (
        f"u of Beta({alpha:g}, {beta:g}) in batches of {batch:,}, {rounds} rounds; ours also "
        "counts the histogram; scipy.stats.beta.fit with floc=0, fscale=1"
    )
    publish("beta", {title: rows}, json_path=json, seed=seed, verdicts=verdicts)
    if figure is not None:
        with figures.panels(2, size=(4.5, 3.6)) as (drawn, (left, right)):
            for axes, column, label in (
                (left, "median s", "seconds (median)"),
                (right, "peak MiB", "peak memory [MiB]"),
            ):
                series = {
                    "ours, streamed": [row[column] for row in own],
                    "scipy.stats.beta.fit": [row[column] for row in theirs],
                }
                figures.lines(axes, lengths, series, xlabel="values of u", ylabel=label)
            figures.heading(left, "Beta fit: time")
            figures.heading(right, "Beta fit: memory")
            figures.save(drawn, figure)
    raise typer.Exit(0 if all(verdicts.values()) else 1)


def compare(stream: "Stream", *, rounds: int) -> list[dict[str, Any]]:
    """Two rows, ours and scipy's."""
    batches = list(stream)  # drawing them is not timed
    found: dict[str, Parameters] = {}
    fits: dict[str, Callable[[Iterable[Floats]], Parameters]] = {
        "ours": streamed,
        "scipy": at_once,
    }

    def kept(name: str) -> Callable[[], None]:
        return lambda: found.update({name: fits[name](batches)})

    seconds = alternate({name: kept(name) for name in fits}, rounds=rounds, warmup=1)
    batches.clear()
    peaks = {name: peak_mib(lambda fit=fit: fit(stream)) for name, fit in fits.items()}  # type: ignore[misc]
    timings = {name: Timing.of(taken, seconds["scipy"]) for name, taken in seconds.items()}
    return [
        {
            "fit": name,
            "values": stream.length,
            "median s": round(timing.median, 5),
            "quartiles s": f"{timing.lower:.4g} to {timing.upper:.4g}",
            "time / scipy": timing.median / timings["scipy"].median,
            "peak MiB": peaks[name],
            "alpha": found[name][0],
            "beta": found[name][1],
            "difference": max(
                abs(a / b - 1) for a, b in zip(found[name], found["scipy"], strict=True)
            ),
        }
        for name, timing in timings.items()
    ]


class Stream:
    """Batches of values in (0, 1); every pass draws the same ones again."""

    def __init__(self, length: int, *, batch: int, alpha: float, beta: float, seed: int) -> None:
        self.length, self.batch, self.seed = length, batch, seed
        self.alpha, self.beta = alpha, beta

    def __iter__(self) -> Iterator[Floats]:
        generator = np.random.default_rng(self.seed)
        for start in range(0, self.length, self.batch):
            size = min(self.batch, self.length - start)
            yield np.clip(generator.beta(self.alpha, self.beta, size), 1e-12, 1 - 1e-12)


def streamed(batches: Iterable[Floats]) -> Parameters:
    """One pass, with one batch in memory at a time."""
    total: BetaStatistics | None = None
    for batch in batches:
        statistics = BetaStatistics.of(batch)
        total = statistics if total is None else total + statistics
    assert total is not None
    fit: BetaFit | None = fit_beta(total)
    assert fit is not None
    return fit.alpha, fit.beta


def at_once(batches: Iterable[Floats]) -> Parameters:
    """All values in memory."""
    fitted = stats.beta.fit(np.concatenate(list(batches)), floc=0, fscale=1)
    return float(fitted[0]), float(fitted[1])


def peak_mib(work: Callable[[], object]) -> float:
    """The peak of memory that numpy and Python allocate during `work`, in MiB."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        work()
        return round((tracemalloc.get_traced_memory()[1] - before) / 2**20, 3)
    finally:
        tracemalloc.stop()

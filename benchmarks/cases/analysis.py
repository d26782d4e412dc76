"""What the probe costs: time against a plain evaluation, and memory along a stream of images."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from benchmarks.support import figures
from benchmarks.support.figures import FigurePath
from benchmarks.support.memory import in_new_process, live_tensor_bytes, resident_bytes
from benchmarks.support.results import JsonPath, publish
from ela_probe.analysis.analyze import analyze
from ela_probe.analysis.probe import AttentionProbe
from ela_probe.data.opening import open_data
from ela_probe.evaluation.comparison import Timing
from ela_probe.evaluation.evaluate import evaluate
from ela_probe.evaluation.peak_memory import peak_bytes
from ela_probe.evaluation.profiling import alternate
from ela_probe.models.registry import create_model
from ela_probe.system.device import resolve_device

MOST_TIME, MOST_MEMORY = 1.03, 1.02
MOST_TIME_WITH_DAMAGE = 2.2

# Tensors alive between batches (the most), the peak of one more pass at the end, and the process's
# resident set: the median of the readings along the stream. Their maximum is shown too, but it
# grows with the number of readings, since an allocator returns pages and takes them again.
MEMORY = ("live tensors MiB", "one pass MiB", "resident set MiB")
SHOWN = (*MEMORY, "largest resident set MiB")
READ_EVERY = 4  # batches

Batch = tuple[Tensor, Tensor]


def run(
    model: Annotated[str, typer.Option(help="A model of the registry.")] = "mrla_b_resnet20",
    data: Annotated[
        str | None, typer.Option(help="npz:PREFIX or another source; random images if not given.")
    ] = None,
    images: Annotated[
        int, typer.Option(min=0, help="Images in a timed pass; 0 leaves time out.")
    ] = 10_000,
    batch_size: Annotated[int, typer.Option(min=1)] = 256,
    rounds: Annotated[int, typer.Option(min=1, help="Timed passes of each kind.")] = 7,
    short: Annotated[int, typer.Option(min=0, help="Images of the short memory run.")] = 5_000,
    long: Annotated[
        int, typer.Option(min=0, help="Images of the long memory run; 0 leaves memory out.")
    ] = 50_000,
    memory_rounds: Annotated[int, typer.Option(min=1, help="Memory runs of each length.")] = 3,
    device: str = "auto",
    seed: int = 0,
    json: JsonPath = None,
    figure: FigurePath = None,
) -> None:
    """Time and memory of `analyze` and of a plain evaluation, in turn in one run."""
    where = resolve_device(device)
    tables: dict[str, list[dict[str, Any]]] = {}
    verdicts: dict[str, bool] = {}
    seconds: dict[str, list[float]] = {}
    memory: list[dict[str, Any]] = []
    if images:
        torch.manual_seed(seed)
        batches = image_batches(data, images=images, batch_size=batch_size, seed=seed)
        network = calibrated(create_model(model), batches[:4]).to(where)
        seconds = alternate(
            {
                "evaluate": lambda: evaluate(network, batches, where, progress=False),
                "analyze, no damage": lambda: analyze(
                    network, batches, damage=False, device=where, progress=False
                ),
                "analyze": lambda: analyze(network, batches, device=where, progress=False),
            },
            rounds=rounds,
            warmup=1,
            device=where,
        )
        rows = time_rows(seconds)
        tables[f"{model}, {images:,} images, {rounds} passes each"] = rows
        verdicts[f"analysis without damage takes at most {MOST_TIME} times the evaluation"] = (
            rows[1]["ratio"] <= MOST_TIME
        )
        verdicts[f"analysis takes at most {MOST_TIME_WITH_DAMAGE} times the evaluation"] = (
            rows[2]["ratio"] <= MOST_TIME_WITH_DAMAGE
        )
    if long:
        options = {"batch_size": batch_size, "seed": seed, "device": str(where)}
        memory = [
            in_new_process(memory_run, model=model, images=number, probed=True, **options)
            for _ in range(memory_rounds)
            for number in (short, long)
        ]
        memory.append(
            in_new_process(memory_run, model=model, images=short, probed=False, **options)
        )
        tables[f"{model}, memory, medians of {memory_rounds} runs in new processes"] = [
            median_row([run for run in memory if (run["images"], run["probed"]) == which])
            for which in ((short, False), (short, True), (long, True))
        ]
        _, least, most = list(tables.values())[-1]
        for kind in MEMORY:
            verdicts[f"{kind} of {long:,} images over {short:,}: at most {MOST_MEMORY}"] = (
                most[kind] <= MOST_MEMORY * least[kind]
            )
    publish("analysis", tables, json_path=json, seed=seed, device=where, verdicts=verdicts)
    if figure is not None:
        draw(figure, model, seconds, [run for run in memory if run["probed"]])
    raise typer.Exit(0 if all(verdicts.values()) else 1)


def time_rows(seconds: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """A row each; the ratio is of the medians, its quartiles are of the ratios within rounds."""
    timings = {name: Timing.of(taken, seconds["evaluate"]) for name, taken in seconds.items()}
    return [
        {
            "pass": name,
            "median s": round(timing.median, 3),
            "quartiles s": f"{timing.lower:.3f} to {timing.upper:.3f}",
            "ratio": round(timing.median / timings["evaluate"].median, 4),
            "ratio quartiles": f"{timing.ratio_lower:.3f} to {timing.ratio_upper:.3f}",
        }
        for name, timing in timings.items()
    ]


def median_row(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A row for runs of one length."""
    return {
        "images": runs[0]["images"],
        "probed": runs[0]["probed"],
        **{kind: statistics.median(run[kind] for run in runs) for kind in SHOWN},
    }


def draw(
    path: Path,
    model: str,
    seconds: Mapping[str, Sequence[float]],
    memory: Sequence[Mapping[str, Any]],
) -> None:
    """The times of the passes, and the memory of the process along the streams, if measured."""
    with figures.panels(bool(seconds) + bool(memory), size=(4.6, 3.6)) as (figure, axes):
        if seconds:
            figures.heading(axes[0], "Evaluation and analysis", f"{model}, every pass")
            figures.spread(axes[0], seconds, label="seconds a pass")
        if memory:
            figures.heading(axes[-1], "Memory of the analysis", f"{model}, of the process, by run")
            for run in memory:
                short = run["images"] == min(r["images"] for r in memory)
                x = [run["batch size"] * READ_EVERY * (k + 1) for k in range(len(run["resident"]))]
                axes[-1].plot(
                    x, run["resident"], color=figures.COLOURS[1 if short else 0], alpha=0.8,
                    label=f"{run['images']:,} images",
                )  # fmt: skip
            axes[-1].set_ylim(0)
            axes[-1].set_xlabel("images so far")
            axes[-1].set_ylabel("resident set [MiB]")
            handles, labels = axes[-1].get_legend_handles_labels()
            unique = dict(zip(labels, handles, strict=True))
            axes[-1].legend(unique.values(), unique.keys(), loc="lower right")
        figures.save(figure, path)


def image_batches(data: str | None, *, images: int, batch_size: int, seed: int) -> list[Batch]:
    """Batches in memory, so that reading images is not timed."""
    if data is not None:
        loader = open_data(data, seed=seed).loader("train", batch_size=batch_size, limit=images)
        return list(loader)
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, 3, 32, 32, generator=generator),
            torch.randint(10, (size,), generator=generator),
        )
        for size in (min(batch_size, images - at) for at in range(0, images, batch_size))
    ]


@torch.no_grad()
def calibrated(model: nn.Module, batches: list[Batch]) -> nn.Module:
    """Give BatchNorm the statistics of these batches, so that activations are of order 1."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # a cumulative mean
        norm.reset_running_stats()
    model.train()
    for images, _ in batches:
        model(images)
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def memory_run(
    *, model: str, images: int, probed: bool, batch_size: int, seed: int, device: str
) -> dict[str, Any]:
    """Evaluate random images, probed or not, and record the memory of this process."""
    where = torch.device(device)
    torch.manual_seed(seed)
    pool = image_batches(None, images=4 * batch_size, batch_size=batch_size, seed=seed)
    network = calibrated(create_model(model), pool).to(where)
    tensors: list[int] = []
    resident: list[int] = []

    def stream() -> Iterator[Batch]:
        for number in range(-(-images // batch_size)):
            if number % READ_EVERY == READ_EVERY - 1:  # the allocator settles first
                tensors.append(live_tensor_bytes())
                resident.append(resident_bytes())
            yield pool[number % len(pool)]

    with AttentionProbe(network) if probed else nullcontext():
        evaluate(network, stream(), where, progress=False)
        with torch.no_grad():
            one_pass = peak_bytes(lambda: network(pool[0][0].to(where)), where)
    return {
        "images": images,
        "probed": probed,
        "live tensors MiB": round(max(tensors) / 2**20, 3),
        "one pass MiB": round(one_pass / 2**20, 3),
        "resident set MiB": round(statistics.median(resident) / 2**20, 1),
        "largest resident set MiB": round(max(resident) / 2**20, 1),
        "batch size": batch_size,
        "resident": [round(value / 2**20, 1) for value in resident],
    }

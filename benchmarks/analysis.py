"""What the probe costs: analysing images against evaluating them, and memory over the stream."""

import gc
import multiprocessing
import resource
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from benchmarks.results import JsonPath, publish
from ela_probe.data import open_data
from ela_probe.device import resolve_device
from ela_probe.evaluation import evaluate
from ela_probe.measure import analyze
from ela_probe.memory import peak_bytes
from ela_probe.models import create_model
from ela_probe.probe import AttentionProbe
from ela_probe.profiling import Timing, alternate

MOST_TIME = 1.10
# What a run ten times as long may hold in addition: MiB of tensors, and of the process.
MOST_GROWTH, MOST_RSS_GROWTH = 1.0, 32.0

Batch = tuple[Tensor, Tensor]


def run(
    model: Annotated[str, typer.Option(help="A model of the registry.")] = "mrla_b_resnet20",
    data: Annotated[
        str | None, typer.Option(help="npz:PREFIX or another source; random images if not given.")
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Images in a timed pass.")] = 10_000,
    batch_size: Annotated[int, typer.Option(min=1)] = 256,
    rounds: Annotated[int, typer.Option(min=1, help="Timed passes each.")] = 7,
    short: Annotated[int, typer.Option(min=0, help="Images of the short memory run.")] = 5_000,
    long: Annotated[
        int, typer.Option(min=0, help="Images of the long memory run; 0 leaves memory out.")
    ] = 50_000,
    device: str = "auto",
    seed: int = 0,
    json: JsonPath = None,
) -> None:
    """Time and memory of `analyze` against a plain evaluation, alternated in one run."""
    where = resolve_device(device)
    torch.manual_seed(seed)
    batches = image_batches(data, images=images, batch_size=batch_size, seed=seed)
    network = calibrated(create_model(model), batches[:4]).to(where)
    seconds = alternate(
        {
            "evaluate": lambda: evaluate(network, batches, where, progress=False),
            "analyze": lambda: analyze(network, batches, device=where, progress=False),
        },
        rounds=rounds,
        warmup=1,
        device=where,
    )
    timings = {name: Timing.of(taken, seconds["evaluate"]) for name, taken in seconds.items()}
    tables: dict[str, list[dict[str, Any]]] = {
        f"{images} images, {rounds} passes each": [
            {
                "pass": name,
                "median s": round(timing.median, 3),
                "quartiles s": f"{timing.lower:.3f} to {timing.upper:.3f}",
                "ratio": round(timing.ratio, 4),
                "ratio quartiles": f"{timing.ratio_lower:.3f} to {timing.ratio_upper:.3f}",
            }
            for name, timing in timings.items()
        ]
    }
    verdicts = {
        f"analysis takes at most {MOST_TIME} times the evaluation": (
            timings["analyze"].ratio <= MOST_TIME
        )
    }
    if long:
        options = {"batch_size": batch_size, "seed": seed, "device": str(where)}
        memory = [
            in_new_process(model, images=number, probed=probed, **options)
            for number, probed in ((short, False), (short, True), (long, True))
        ]
        tables["Memory, each run in a new process"] = memory
        verdicts["memory does not grow with the number of images"] = (
            memory[2]["live tensors MiB"] - memory[1]["live tensors MiB"] <= MOST_GROWTH
            and memory[2]["one pass MiB"] - memory[1]["one pass MiB"] <= MOST_GROWTH
            and memory[2]["RSS growth MiB"] - memory[1]["RSS growth MiB"] <= MOST_RSS_GROWTH
        )
    publish("analysis", tables, json_path=json, seed=seed, device=where, verdicts=verdicts)
    raise typer.Exit(0 if all(verdicts.values()) else 1)


def image_batches(data: str | None, *, images: int, batch_size: int, seed: int) -> list[Batch]:
    """Batches held in memory, so that reading images is no part of what is timed."""
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


def in_new_process(model: str, **options: Any) -> dict[str, Any]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(memory_run, (model,), options)


def memory_run(
    model: str, *, images: int, probed: bool, batch_size: int, seed: int, device: str
) -> dict[str, Any]:
    """Evaluate `images` random images, probed or not, and follow the memory of this process."""
    where = torch.device(device)
    torch.manual_seed(seed)
    pool = image_batches(None, images=4 * batch_size, batch_size=batch_size, seed=seed)
    network = calibrated(create_model(model), pool).to(where)
    tensors: list[int] = []
    resident: list[int] = []

    def stream() -> Iterator[Batch]:
        for number in range(-(-images // batch_size)):
            if number % 8 == 4:  # the first batches settle the allocator
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
        "RSS MiB": round(max(resident) / 2**20, 1),
        "RSS growth MiB": round((max(resident) - resident[0]) / 2**20, 1),
    }


def live_tensor_bytes() -> int:
    """Bytes of all tensor storages that Python still reaches, each counted once."""
    gc.collect()
    storages = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
        for value in gc.get_objects()
        if type(value) in (Tensor, nn.Parameter)
    }
    return sum(storages.values())


def resident_bytes() -> int:
    """The resident set of this process now; its maximum where the system doesn't tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return pages * resource.getpagesize()

"""Where the time of layer attention goes: a profile by operator, and the bytes moved at least."""

import time
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch.profiler import ProfilerActivity, profile

from benchmarks.cases.speed import NETWORKS
from benchmarks.support.contestants import OURS, PLAIN, RECUR, contestants
from benchmarks.support.results import JsonPath, publish
from ela_probe.adapters.registry import adapter_for
from ela_probe.errors import OptionError
from ela_probe.evaluation.profiling import Step, synchronize, training_step
from ela_probe.system.device import resolve_device

BANDWIDTH_BYTES = 256 * 2**20


def run(
    network: Annotated[str, typer.Option(help=", ".join(NETWORKS))] = "resnet110",
    rounds: Annotated[int, typer.Option(min=1, help="Profiled steps; medians are shown.")] = 5,
    rows: Annotated[int, typer.Option(min=1, help="Operators shown.")] = 15,
    device: str = "auto",
    seed: int = 0,
    json: JsonPath = None,
) -> None:
    """Time of each operator in a training step, and the least time of the weighted sums.

    The least time is for moving these bytes at the bandwidth of a copy: each site's sum, the
    gradient of its weights and the gradients of the values read every value (or the gradient of
    every sum) once, and write their results once.
    """
    if network not in NETWORKS:
        raise OptionError(f"no network is called {network}; use {', '.join(NETWORKS)}")
    where = resolve_device(device)
    what = NETWORKS[network]
    torch.manual_seed(seed)
    images, labels = what.batch(seed)
    images = images.to(where, memory_format=torch.channels_last)
    models = contestants(what, [], full=False)
    profiles = {
        name: profiled(
            training_step(
                model.to(where).to(memory_format=torch.channels_last), images, labels.to(where)
            ),
            rounds,
            where,
        )
        for name, model in models.items()
    }
    ours = profiles[OURS]
    shown = sorted(ours, key=lambda op: -(ours[op] - profiles[PLAIN].get(op, 0.0)))[:rows]
    operators: list[dict[str, Any]] = [
        {"operator": op, **{name: round(found.get(op, 0.0), 1) for name, found in profiles.items()}}
        for op in shown
    ]
    rest = {
        name: sum(t for op, t in found.items() if op not in shown)
        for name, found in profiles.items()
    }
    operators.append({"operator": "all others", **{name: round(t, 1) for name, t in rest.items()}})
    total = {name: sum(found.values()) for name, found in profiles.items()}
    operators.append({"operator": "in all", **{name: round(t, 1) for name, t in total.items()}})

    moved = bytes_of_sums(models[OURS], images)
    speed = bandwidth(where)
    beyond = total[OURS] - total[PLAIN]
    floor = [
        {
            "bytes of the sums, MiB": round(moved / 2**20, 1),
            "bandwidth of a copy, GiB/s": round(speed / 2**30, 2),
            "floor of the sums, ms": round(1e3 * moved / speed, 1),
            f"{OURS} beyond {PLAIN}, ms": round(beyond, 1),
            f"{RECUR} beyond {PLAIN}, ms": round(total[RECUR] - total[PLAIN], 1),
        }
    ]
    size = f"{network}, {what.images} images of {what.size} x {what.size}, one training step"
    tables = {f"{size}: ms by operator, largest addition to plain first": operators, "Floor": floor}
    publish("breakdown", tables, json_path=json, seed=seed, device=where)


def profiled(step: Step, rounds: int, device: torch.device) -> dict[str, float]:
    """Median milliseconds of each operator's own time."""
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    found: dict[str, list[float]] = {}
    for _ in range(2):
        step()
    for _ in range(rounds):
        with profile(activities={ProfilerActivity.CPU, activity}) as seen:
            step()
            synchronize(device)
        for event in seen.key_averages():
            own = (
                event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
            )
            found.setdefault(event.key, []).append(own / 1e3)
    return {name: float(np.median(times)) for name, times in found.items()}


def bytes_of_sums(model: torch.nn.Module, images: torch.Tensor) -> int:
    """Bytes that the weighted sums and their gradients move, from the sizes of feature maps."""
    adapter = adapter_for(model)
    assert adapter is not None
    total = 0
    for stage in adapter.stages(model):
        sizes: list[int] = []
        module = model.get_submodule(f"{stage.sites[0].name}.value")
        hook = module.register_forward_hook(
            lambda m, i, out, sizes=sizes: sizes.append(out.numel() * out.element_size())
        )
        with torch.no_grad():
            model(images)
        hook.remove()
        total += sizes[0] * passes([site.sources for site in stage.sites])
    return total


def passes(sources: Sequence[int]) -> int:
    """Reads and writes of a feature map: three times a read for each source of each site (sum,
    gradient of the weights, gradient of the values), and a write of each sum and gradient."""
    sites, most = len(sources), sources[-1]
    return 3 * sum(sources) + sites + most


def bandwidth(device: torch.device) -> float:
    """Bytes read and written per second by a copy, the best of several."""
    source = torch.ones(BANDWIDTH_BYTES // 4, device=device)
    target = torch.empty_like(source)
    taken = []
    for _ in range(8):
        synchronize(device)
        start = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        taken.append(time.perf_counter() - start)
    return 2 * BANDWIDTH_BYTES / min(taken)

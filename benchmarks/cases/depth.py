"""How the cost of layer attention grows with depth: fitted exponents of time and memory.

The cost is what a training step takes beyond that of the plain network of the same depth.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.support import figures
from benchmarks.support.contestants import PLAIN, PUBLISHED_B, RECUR, Network, contestants
from benchmarks.support.results import NOTHING, JsonPath, publish
from ela_probe.evaluation.peak_memory import peak_bytes
from ela_probe.evaluation.profiling import alternate, training_step
from ela_probe.system.device import resolve_device

DEPTHS = (20, 56, 110, 218)
MOST = 1.1


def run(
    reference: Annotated[list[Path] | None, typer.Option(help="A checkout of bgx666/KCLA.")] = None,
    depth: Annotated[
        list[int] | None, typer.Option(help="6n+2; may be repeated. Default: 20, 56, 110, 218.")
    ] = None,
    images: Annotated[int, typer.Option(min=2, help="Batch size.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Timed steps of each network.")] = 7,
    device: str = "auto",
    seed: int = 0,
    json: JsonPath = None,
    figure: figures.FigurePath = None,
) -> None:
    """Fit cost = c · depth^e over CIFAR ResNets, timed in turn with the plain network."""
    where = resolve_device(device)
    depths = sorted(depth or DEPTHS)
    rows: list[dict[str, Any]] = []
    for number in depths:
        torch.manual_seed(seed)
        network = Network("resnet", number, images=images, size=32)
        batch = network.batch(seed)
        last = batch[0].to(where, memory_format=torch.channels_last), batch[1].to(where)
        asis = batch[0].to(where), last[1]
        steps = {
            name: training_step(model.to(where), *asis)
            if name == PUBLISHED_B
            else training_step(model.to(where).to(memory_format=torch.channels_last), *last)
            for name, model in contestants(network, reference or [], full=False).items()
        }
        taken = alternate(
            steps, rounds=rounds, warmup=2, device=where, description=f"depth {number}"
        )
        peaks = {name: peak_bytes(step, where) / 2**20 for name, step in steps.items()}
        for name, times in taken.items():
            beyond = np.subtract(times, taken[PLAIN])
            lower, median, upper = np.percentile(beyond, [25, 50, 75])
            rows.append(
                {
                    "depth": number,
                    "contestant": name,
                    "step ms": round(1e3 * float(np.median(times)), 2),
                    "beyond plain, ms": round(1e3 * float(median), 2),
                    "quartiles": f"{1e3 * lower:.1f} to {1e3 * upper:.1f}",
                    "beyond plain, MiB": round(peaks[name] - peaks[PLAIN], 2),
                }
            )
    names = [name for name in dict.fromkeys(row["contestant"] for row in rows) if name != PLAIN]
    fits = [
        {
            "contestant": name,
            "exponent of time": exponent(rows, name, "beyond plain, ms"),
            "from the second depth on": exponent(rows, name, "beyond plain, ms", skip=1),
            "exponent of memory": exponent(rows, name, "beyond plain, MiB"),
        }
        for name in names
    ]
    found = next(fit["exponent of time"] for fit in fits if fit["contestant"] == RECUR)
    verdicts = {
        f"exponent of {RECUR}: {found}, at most {MOST}": isinstance(found, float) and found <= MOST
    }
    tables = {
        f"Training step of {images} images, {rounds} rounds": rows,
        "Fitted over all depths": fits,
    }
    publish("depth", tables, json_path=json, seed=seed, device=where, verdicts=verdicts)
    if figure is not None:
        with figures.panels(2, size=(5.0, 3.8)) as (drawn, panels):
            for panel, column in zip(
                panels, ("beyond plain, ms", "beyond plain, MiB"), strict=True
            ):
                series = {name: positive(rows, name, column) for name in names}
                figures.lines(panel, depths, series, xlabel="depth", ylabel=column)
            figures.heading(panels[0], "Cost of layer attention", f"{images} images, log-log")
            figures.save(drawn, figure)
    raise typer.Exit(0 if all(verdicts.values()) else 1)


def positive(rows: Sequence[Mapping[str, Any]], name: str, column: str) -> list[float]:
    values = [float(row[column]) for row in rows if row["contestant"] == name]
    return [value if value > 0 else float("nan") for value in values]


def exponent(
    rows: Sequence[Mapping[str, Any]], name: str, column: str, *, skip: int = 0
) -> float | str:
    """The slope of a least-squares line of log cost over log depth; NOTHING where there is none.

    That is so for one depth, and where noise makes a cost 0 or less.
    """
    depths = sorted({row["depth"] for row in rows})[skip:]
    costs = positive(rows, name, column)[skip:]
    if len(depths) < 2 or not np.isfinite(costs).all():
        return NOTHING
    return round(float(np.polyfit(np.log(depths), np.log(costs), 1)[0]), 3)

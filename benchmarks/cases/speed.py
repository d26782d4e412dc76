"""Time and memory of training steps and inference: published networks, ours, and ours pruned.

Ours and the plain network run in channels-last memory format, and once in the default one. The
published code runs as it is. Ratios to plain are to the faster of its two formats.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, cast
from unittest import mock

import numpy as np
import torch
import typer
from torch import nn

from benchmarks.published.checkouts import References
from benchmarks.support import figures
from benchmarks.support.contestants import (
    HALF,
    OURS,
    PLAIN,
    PUBLISHED_B,
    PUBLISHED_L,
    RECUR,
    Batch,
    Network,
    contestants,
    gradients,
    largest_difference,
)
from benchmarks.support.results import JsonPath, publish
from ela_probe.errors import OptionError
from ela_probe.evaluation.peak_memory import peak_bytes
from ela_probe.evaluation.profiling import Step, alternate, inference_step, training_step
from ela_probe.models.published import from_published
from ela_probe.system.device import resolve_device

NETWORKS = {
    "resnet20": Network("resnet", 20, images=64, size=32),
    "resnet56": Network("resnet", 56, images=64, size=32),
    "resnet110": Network("resnet", 110, images=64, size=32),
    "resnet50": Network("imagenet_resnet", 50, images=4, size=224),
}
TOLERANCE = 1e-5
DIFFERENCES = ("logits differ", "gradients differ", "in float64")
CONTIGUOUS, COMPILED = ", contiguous", ", compiled"
BOTH_FORMATS, ALSO_COMPILED = (PLAIN, OURS), (PLAIN, OURS, HALF)
# Of ResNet-110: a contestant, what it is compared with, and the largest ratios of time and memory.
REQUIRED = {
    "cpu": [
        (OURS, PUBLISHED_B, 0.65, 0.45),
        (HALF, PUBLISHED_B, 0.55, None),
        (HALF, PLAIN, 1.20, None),
        (RECUR, OURS, 0.8, None),
    ],
    "cuda": [
        (OURS, PUBLISHED_B, 0.6, 0.45),
        (OURS + COMPILED, PUBLISHED_B, 0.35, None),
        (HALF + COMPILED, PUBLISHED_B, 0.3, None),
        (HALF, PLAIN, 1.20, None),
        (RECUR, OURS, 0.8, None),
    ],
}


def run(
    reference: References = None,
    network: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(NETWORKS)}; may be repeated.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=2, help="Batch size. Default: 64, and 4 of 224 x 224.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed steps of each network.")] = 7,
    compiled: Annotated[
        bool | None, typer.Option(help="Also time compiled networks. Default: on CUDA only.")
    ] = None,
    device: str = "auto",
    seed: int = 0,
    json: JsonPath = None,
    figure: figures.FigurePath = None,
) -> None:
    """Time every network once a round, in turn, and check what it computes in the same run."""
    where = resolve_device(device)
    chosen = list(NETWORKS) if network is None else network
    unknown = sorted(set(chosen) - NETWORKS.keys())
    if unknown:
        raise OptionError(f"no network is called {unknown[0]}; use {', '.join(NETWORKS)}")
    tables: dict[str, list[dict[str, Any]]] = {}
    verdicts: dict[str, bool] = {}
    for name in chosen:
        what = NETWORKS[name]
        if images is not None:
            what = Network(what.kind, what.depth, images, what.size)
        measured = measure(
            what,
            reference or [],
            rounds=rounds,
            compiled=where.type == "cuda" if compiled is None else compiled,
            device=where,
            seed=seed,
        )
        shape = f"{what.images} images of {what.size} x {what.size}"
        for kind, rows in measured.items():
            tables[f"{name}, {kind}, {shape}, {rounds} rounds"] = rows
        verdicts |= verdicts_on(
            name, measured["training"], REQUIRED.get(where.type, []) if name == "resnet110" else []
        )
    publish("speed", tables, json_path=json, seed=seed, device=where, verdicts=verdicts)
    if figure is not None:
        draw(tables, figure)
    raise typer.Exit(0 if all(verdicts.values()) else 1)


def measure(
    network: Network,
    checkouts: Sequence[Path],
    *,
    rounds: int,
    compiled: bool,
    device: torch.device,
    seed: int,
) -> dict[str, list[dict[str, Any]]]:
    """A table of training steps and one of inference, with a row for each contestant."""
    torch.manual_seed(seed)
    models = contestants(network, checkouts)
    batch = network.batch(seed)
    differences: dict[str, tuple[float, float, float | None]] = {
        name: difference(name, models, batch) for name in models
    }
    default = batch[0].to(device), batch[1].to(device)
    channels_last = default[0].to(memory_format=torch.channels_last), default[1]
    placed: dict[str, tuple[nn.Module, Batch]] = {}
    for name, model in models.items():
        if name in (PUBLISHED_B, PUBLISHED_L):
            placed[name] = model.to(device), default
            continue
        if name in BOTH_FORMATS:
            placed[name + CONTIGUOUS] = copy.deepcopy(model).to(device), default
            differences[name + CONTIGUOUS] = differences[name]
        eager = model.to(device).to(memory_format=torch.channels_last)
        placed[name] = eager, channels_last
        if compiled and name in ALSO_COMPILED:
            fast = cast(nn.Module, torch.compile(copy.deepcopy(eager), fullgraph=True))
            placed[name + COMPILED] = fast, channels_last
            differences[name + COMPILED] = compiled_difference(fast, eager, channels_last)
    tables = {}
    for kind, build in (("training", training_step), ("inference", inference_step)):
        steps: dict[str, Step] = {
            name: build(model, *inputs) for name, (model, inputs) in placed.items()
        }
        order = {name: steps[name] for name in sorted(steps, key=order_of)}
        seconds = alternate(
            order, rounds=rounds, warmup=2, device=device, description=f"{network.name} {kind}"
        )
        # on a CPU memory is measured in a dispatch mode, in which compiled code does not run
        followed = {n: s for n, s in order.items() if device.type == "cuda" or COMPILED not in n}
        peaks = {name: peak_bytes(step, device) / 2**20 for name, step in followed.items()}
        tables[kind] = [row(name, seconds, peaks) for name in order]
    for line in tables["training"]:
        line |= zip(DIFFERENCES, differences[line["contestant"]], strict=True)
    return tables


def order_of(name: str) -> tuple[int, str]:
    """The plain ones first, then the published, then ours."""
    return (0 if name.startswith(PLAIN) else 1 if name.startswith("publ") else 2), name


def row(
    name: str, seconds: Mapping[str, Sequence[float]], peaks: Mapping[str, float]
) -> dict[str, Any]:
    """Ratios are of medians; the one to plain is to the faster of its two formats."""
    lower, median, upper = (1e3 * float(t) for t in np.percentile(seconds[name], [25, 50, 75]))
    plain = min(1e3 * float(np.median(seconds[n])) for n in (PLAIN, PLAIN + CONTIGUOUS))
    result: dict[str, Any] = {
        "contestant": name,
        "median ms": round(median, 2),
        "quartiles ms": f"{lower:.1f} to {upper:.1f}",
        "time / plain": round(median / plain, 3),
        "MiB": round(peaks[name], 1) if name in peaks else "-",
    }
    if PUBLISHED_B in seconds:
        published = 1e3 * float(np.median(seconds[PUBLISHED_B]))
        result["time / published MRLA-B"] = round(median / published, 3)
        memory = peaks[name] / peaks[PUBLISHED_B] if name in peaks else None
        result["memory / published MRLA-B"] = "-" if memory is None else round(memory, 3)
    return result


def difference(
    name: str, models: Mapping[str, nn.Module], batch: Batch
) -> tuple[float, float, float]:
    """Largest differences from the reference: of logits and gradients in float32, and of gradients
    in float64. The reference is the published network, or else the definitions in plain PyTorch.

    In float32 the input of a ReLU can round to the other side of zero, and two correct gradients
    then differ by a whole term.
    """
    theirs = {OURS: PUBLISHED_B, "ours MRLA-L": PUBLISHED_L}.get(name)
    small = batch[0][:4], batch[1][:4]
    found = []
    for dtype, images in ((torch.float32, batch), (torch.float64, small)):
        model = copy.deepcopy(models[name]).to(dtype)
        inputs = images[0].to(dtype), images[1]
        actual = gradients(model, inputs)
        if theirs is not None and theirs in models:
            expected = gradients(copy.deepcopy(models[theirs]).to(dtype), inputs)
            expected = from_published(expected)
        else:
            with mock.patch.object(torch.compiler, "is_compiling", return_value=True):
                expected = gradients(copy.deepcopy(models[name]).to(dtype), inputs)
        logits = {"logits": actual.pop("logits")}, {"logits": expected.pop("logits")}
        found.append((largest_difference(*logits), largest_difference(actual, expected)))
    (logits_differ, gradients_differ), (_, in_double) = found
    return logits_differ, gradients_differ, in_double


def compiled_difference(
    model: nn.Module, eager: nn.Module, batch: Batch
) -> tuple[float, float, None]:
    """Largest differences of a compiled network from the eager one, in float32 only."""
    actual = gradients(model, batch)
    expected = {f"_orig_mod.{n}": t for n, t in gradients(eager, batch).items()}
    expected["logits"] = expected.pop("_orig_mod.logits")
    logits = {"logits": actual.pop("logits")}, {"logits": expected.pop("logits")}
    return largest_difference(*logits), largest_difference(actual, expected), None


def verdicts_on(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    required: Sequence[tuple[str, str, float, float | None]],
) -> dict[str, bool]:
    by_name = {row["contestant"]: row for row in rows}
    verdicts = {
        f"{name}: logits and gradients equal the reference to {TOLERANCE:g}": all(
            row["logits differ"] <= TOLERANCE
            and (row["in float64"] or row["gradients differ"]) <= TOLERANCE
            for row in rows
        )
    }
    for contestant, other, time, memory in required:
        if contestant not in by_name or other not in by_name:
            continue
        ours, theirs = by_name[contestant], by_name[other]
        measured = ours["median ms"] / theirs["median ms"]
        ratio = ours["time / plain"] if other == PLAIN else measured
        verdicts[f"{name}: {contestant} / {other}: {ratio:.3f} of the time, at most {time}"] = (
            ratio <= time
        )
        if memory is not None:
            ratio = ours["MiB"] / theirs["MiB"]
            verdicts[f"{name}: {contestant} / {other}: {ratio:.3f} of memory, at most {memory}"] = (
                ratio <= memory
            )
    return verdicts


def draw(tables: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    steps = {title: rows for title, rows in tables.items() if ", training, " in title}
    with figures.panels(len(steps), size=(6.4, 4.6)) as (drawn, axes):
        for panel, (title, rows) in zip(axes, steps.items(), strict=True):
            ours = [r["contestant"] for r in rows if r["contestant"].startswith(("ours", "ELA"))]
            name, _, rest = title.split(", ", 2)
            figures.heading(panel, name, rest)
            ratios = {row["contestant"]: row["time / plain"] for row in rows}
            figures.bars(panel, ratios, label="training step / plain network", ours=ours, limit=1.0)
        figures.save(drawn, path)

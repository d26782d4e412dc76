"""A deep stack: what the analysis of its retrievals costs in time and memory.

By default 93 layers of width 256 with Attention Residuals: 187 retrievals, 17,391 pairs. Weights
and tokens are random: neither time nor memory depends on what the network has learned.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any
from unittest import mock

import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from benchmarks.support.memory import in_new_process, live_tensor_bytes, resident_bytes
from benchmarks.support.results import JsonPath, publish
from ela_probe.adapters.registry import adapter_for
from ela_probe.analysis import divergence, packing
from ela_probe.analysis.analyze import analyze
from ela_probe.analysis.metric import RedundancyMetric
from ela_probe.evaluation.comparison import Timing
from ela_probe.evaluation.evaluate import evaluate
from ela_probe.evaluation.profiling import alternate
from ela_probe.models.registry import create_model
from ela_probe.system.device import resolve_device

MOST_MEMORY = 1.02
READ_EVERY = 2  # batches between two readings of the memory
MEMORY = ("live tensors MiB", "resident set MiB")
PLAIN, ANALYSED, WITH_DAMAGE = "evaluate", "analyze, no damage", "analyze"
PRODUCTS, ROWS, CALLS = "matrix products", "row by row", "F.kl_div, a call per pair (kl only)"

Batch = tuple[Tensor, Tensor]


def run(
    layers: Annotated[int, typer.Option(min=2)] = 93,
    width: Annotated[int, typer.Option(min=32, help="A multiple of 64.")] = 256,
    block: Annotated[
        int, typer.Option(min=1, help="Sublayers that sum to one source; 1: full AttnRes.")
    ] = 1,
    tokens: Annotated[int, typer.Option(min=2, help="Of a sample.")] = 64,
    samples: Annotated[
        int, typer.Option(min=0, help="Samples of a timed pass; 0 leaves time out.")
    ] = 8,
    batch_size: Annotated[int, typer.Option(min=1)] = 2,
    max_tokens: Annotated[int, typer.Option(min=1, help="Recorded of a sample, in one row.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="Timed passes of each kind.")] = 5,
    short: Annotated[int, typer.Option(min=1, help="Samples of the short memory run.")] = 16,
    long: Annotated[
        int, typer.Option(min=0, help="Samples of the long memory run; 0 leaves memory out.")
    ] = 128,
    memory_rounds: Annotated[int, typer.Option(min=1, help="Memory runs of each length.")] = 3,
    device: str = "auto",
    seed: int = 0,
    json: JsonPath = None,
) -> None:
    """Time and memory of the analysis of a deep stack, beside a plain evaluation."""
    where = resolve_device(device)
    tables: dict[str, list[dict[str, Any]]] = {}
    verdicts: dict[str, bool] = {}
    shape = {"layers": layers, "width": width, "block": block, "seed": seed}
    sites = 2 * layers + 1
    if samples:
        network = deep_network(**shape).to(where)
        batches = token_batches(samples, tokens=tokens, batch_size=batch_size, seed=seed)
        title = (
            f"{layers} layers of width {width}, {sites} sites, {samples} samples x {tokens} tokens"
        )
        thinned = f"{ANALYSED}, {max_tokens} tokens a sample"
        options: dict[str, Any] = {"device": where, "progress": False}
        passes = {
            PLAIN: lambda: evaluate(network, batches, where, progress=False),
            ANALYSED: lambda: analyze(network, batches, damage=False, **options),
            thinned: lambda: analyze(
                network, batches, damage=False, max_tokens=max_tokens, **options
            ),
            WITH_DAMAGE: lambda: analyze(network, batches, **options),
        }
        taken = alternate(passes, rounds=rounds, warmup=1, device=where)
        tables[f"{title}, {rounds} passes each"] = time_rows(taken, PLAIN)
        rows, pairs = batch_size * tokens, sites * (sites - 1) // 2
        table, agree = of_divergences(network, rounds=rounds, tokens=tokens, samples=batch_size)
        tables[f"all divergences of {rows} rows, {pairs:,} pairs, {rounds} times each"] = table
        verdicts["all ways to kl agree to 1e-12 nats"] = agree
    if long:
        kept = {**shape, "tokens": tokens, "batch_size": batch_size, "device": str(where)}
        runs = [
            in_new_process(memory_run, kind=kind, samples=number, **kept)
            for _ in range(memory_rounds)
            for kind in (PLAIN, ANALYSED, WITH_DAMAGE)
            for number in (short, long)
        ]
        table = [
            {
                "pass": kind,
                "samples": number,
                **{
                    name: statistics.median(
                        r[name] for r in runs if (r["pass"], r["samples"]) == (kind, number)
                    )
                    for name in (*MEMORY, "largest resident set MiB")
                },
            }
            for kind in (PLAIN, ANALYSED, WITH_DAMAGE)
            for number in (short, long)
        ]
        tables[f"memory, medians of {memory_rounds} runs in new processes"] = table
        for kind in (ANALYSED, WITH_DAMAGE):
            least, most = (row for row in table if row["pass"] == kind)
            for name in MEMORY:
                verdicts[f"{kind}: {name}, {long} samples over {short}: at most {MOST_MEMORY}"] = (
                    most[name] <= MOST_MEMORY * least[name]
                )
    publish("scale", tables, json_path=json, seed=seed, device=where, verdicts=verdicts)
    raise typer.Exit(0 if all(verdicts.values()) else 1)


def deep_network(*, layers: int, width: int, block: int, seed: int) -> nn.Module:
    """Attention Residuals with random queries, so that no two retrievals are equal."""
    torch.manual_seed(seed)
    name = "attnres" if block == 1 else "attnres_block"
    options = {} if block == 1 else {"block_size": block}
    network = create_model(f"{name}{layers}", dim=width, heads=max(2, width // 64), **options)
    with torch.no_grad():
        for parameter_name, parameter in network.named_parameters():
            if parameter_name.endswith("retrieval.query"):
                parameter.normal_(std=0.1)
    return network.eval()


def token_batches(samples: int, *, tokens: int, batch_size: int, seed: int) -> list[Batch]:
    """Random tokens, and the next token of each as its label."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(256, (samples, tokens + 1), generator=generator)
    return [(part[:, :-1], part[:, 1:]) for part in text.split(batch_size)]


def time_rows(taken: Mapping[str, Sequence[float]], first: str) -> list[dict[str, Any]]:
    """A row each; ratios are formed within a round."""
    timings = {name: Timing.of(seconds, taken[first]) for name, seconds in taken.items()}
    return [
        {
            "what": name,
            "median s": round(timing.median, 3),
            "ratio, median of the rounds": round(timing.ratio, 3),
            "its quartiles": f"{timing.ratio_lower:.3f} to {timing.ratio_upper:.3f}",
        }
        for name, timing in timings.items()
    ]


def of_divergences(
    network: nn.Module, *, rounds: int, tokens: int, samples: int
) -> tuple[list[dict[str, Any]], bool]:
    """The time of all statistics of one batch of weights, in three ways; whether these agree."""
    sizes = adapter_for(network).stages(network)[0].sizes  # type: ignore[union-attr]
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(samples, tokens, n, generator=generator).softmax(-1) for n in sizes]
    found: dict[str, Tensor] = {}

    def whole(name: str, limit: int) -> None:
        with mock.patch.object(packing, "LARGE_SAMPLE", limit):
            metric = RedundancyMetric(sizes)
            metric.update(weights)
        found[name] = metric.compute()["kl"]

    def loop() -> None:
        rows = [divergence.normalise(w).flatten(0, 1) for w in weights]
        logs = [row.log() for row in rows]
        kl = torch.zeros(len(sizes), len(sizes), dtype=torch.float64)
        for j, log in enumerate(logs):
            for i, row in enumerate(rows[:j]):
                terms = F.kl_div(log[:, : row.shape[1]], row, reduction="sum")
                kl[i, j] = terms / len(row)
        found[CALLS] = kl

    taken = alternate(
        {
            PRODUCTS: lambda: whole(PRODUCTS, 0),
            ROWS: lambda: whole(ROWS, 2**60),
            CALLS: loop,
        },
        rounds=rounds,
        warmup=1,
    )
    differ = max(float((found[name] - found[PRODUCTS]).abs().max()) for name in (ROWS, CALLS))
    return time_rows(taken, PRODUCTS), differ <= 1e-12


def memory_run(
    *,
    kind: str,
    samples: int,
    layers: int,
    width: int,
    block: int,
    tokens: int,
    batch_size: int,
    seed: int,
    device: str,
) -> dict[str, Any]:
    """Run one kind of pass over a stream, and record the memory of this process between batches."""
    where = torch.device(device)
    network = deep_network(layers=layers, width=width, block=block, seed=seed).to(where)
    pool = token_batches(4 * batch_size, tokens=tokens, batch_size=batch_size, seed=seed)
    live: list[int] = []
    resident: list[int] = []

    def stream() -> Iterator[Batch]:
        for number in range(-(-samples // batch_size)):
            if number % READ_EVERY == READ_EVERY - 1:  # the allocator settles first
                live.append(live_tensor_bytes())
                resident.append(resident_bytes())
            yield pool[number % len(pool)]

    if kind == PLAIN:
        evaluate(network, stream(), where, progress=False)
    else:
        analyze(
            network,
            stream(),
            device=where,
            damage=kind == WITH_DAMAGE,
            fit_batches=pool[:2],
            progress=False,
        )
    return {
        "pass": kind,
        "samples": samples,
        "live tensors MiB": round(max(live) / 2**20, 2),
        "resident set MiB": round(statistics.median(resident) / 2**20, 1),
        "largest resident set MiB": round(max(resident) / 2**20, 1),
    }

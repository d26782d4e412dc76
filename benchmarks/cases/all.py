"""All commands that need nothing but this machine, one after the other, into one file."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.cases import analysis, beta, depth, divergence, speed
from benchmarks.published.checkouts import References
from benchmarks.support.results import JsonPath, read_results
from ela_probe.system.storage import output_directory, write_json

Case = Callable[..., None]


def run(
    reference: References = None,
    device: str = "auto",
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds of every command.")] = 5,
    seed: int = 0,
    json: JsonPath = None,
    figures: Annotated[
        Path | None, typer.Option(help="A folder for a figure of each command.")
    ] = None,
) -> None:
    """Run speed, depth, analysis, divergence and beta. Without checkouts only ours are measured."""
    common: dict[str, Any] = {"rounds": rounds, "seed": seed}
    placed = {**common, "device": device}
    cases: dict[str, tuple[Case, dict[str, Any]]] = {
        "speed": (speed.run, {**placed, "reference": reference}),
        "depth": (depth.run, {**placed, "reference": reference}),
        "analysis": (analysis.run, {**placed, "memory_rounds": 1}),
        "divergence": (divergence.run, common),
        "beta": (beta.run, common),
    }
    folder = None if figures is None else output_directory(figures)
    results, passed = [], True
    with tempfile.TemporaryDirectory() as scratch:
        for name, (case, options) in cases.items():
            written = Path(scratch) / f"{name}.json"
            drawn = None if folder is None else folder / f"{name}.png"
            try:
                case(**options, json=written, figure=drawn)
            except typer.Exit as left:
                passed &= left.exit_code == 0
            results += read_results(written)
            if json is not None:  # after each case, so that an interrupted run keeps what it has
                write_json(json, {"case": "all", "results": results})
            typer.echo("")
    raise typer.Exit(0 if passed else 1)

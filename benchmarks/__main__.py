"""The command `python -m benchmarks CASE [options] [--json OUT]`.

A case is a file with one function whose parameters are its options; CASES lists them.
"""

from collections.abc import Callable

import typer

from benchmarks import (
    analysis,
    beta,
    breakdown,
    depth,
    divergence,
    everything,
    foreign,
    parity,
    plans,
    results,
    speed,
    table,
)
from ela_probe.errors import ElaProbeError

CASES: dict[str, Callable[..., None]] = {
    "all": everything.run,
    "analysis": analysis.run,
    "beta": beta.run,
    "breakdown": breakdown.run,
    "depth": depth.run,
    "divergence": divergence.run,
    "foreign": foreign.run,
    "methods": table.run,
    "parity": parity.run,
    "plans": plans.run,
    "speed": speed.run,
    "table": results.run,
}

app = typer.Typer(
    help="Measure ela-probe on this machine. Each case prints a table and, with --json, writes it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for name, run in CASES.items():
    app.command(name)(run)

if __name__ == "__main__":
    try:
        app()
    except ElaProbeError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from error

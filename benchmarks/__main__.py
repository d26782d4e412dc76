"""The command `python -m benchmarks COMMAND [options] [--json OUT]`.

Each command is the function `run` of the file of its name in `cases/`; its parameters are the
options.
"""

from importlib import import_module

import typer

from ela_probe.errors import ElaProbeError

COMMANDS = (
    "all",
    "analysis",
    "beta",
    "breakdown",
    "damage",
    "depth",
    "divergence",
    "foreign",
    "gpu",
    "methods",
    "parity",
    "plans",
    "pretrained",
    "residuals",
    "scale",
    "speed",
    "table",
)

app = typer.Typer(
    help="Measure ela-probe on this machine. Commands print tables and, with --json, write them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for name in COMMANDS:
    app.command(name)(import_module(f"benchmarks.cases.{name}").run)

if __name__ == "__main__":
    try:
        app()
    except ElaProbeError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from error

"""Results that were written earlier, as markdown."""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.support.results import markdown, read_results


def run(
    files: Annotated[list[Path], typer.Argument(help="Results written with --json.")],
) -> None:
    """Print results written with --json as markdown tables."""
    typer.echo("\n\n".join(markdown(result) for path in files for result in read_results(path)))

"""Results of a benchmark: JSON with all that is needed to judge them, and markdown tables."""

import json
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ela_probe.evaluation.profiling import describe_machine
from ela_probe.system.storage import write_json
from ela_probe.system.versions import versions

JsonPath = Annotated[Path | None, typer.Option("--json", help="Write the result to this file.")]
NOTHING = "–"


def publish(
    case: str,
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    json_path: Path | None,
    seed: int,
    device: torch.device | None = None,
    verdicts: Mapping[str, bool] | None = None,
) -> dict[str, Any]:
    """Print the tables and write the result, if a path is given.

    Args:
        case: its name. tables: by title, rows of plain values by column; the rows of a table have
            the same columns.
        verdicts: each requirement in words, and whether it is met.

    Raises:
        OutputError: the file can't be written.
    """
    result = {
        "case": case,
        "command": command(),
        "seed": seed,
        "machine": describe_machine(device).model_dump(),
        "versions": versions(),
        "verdicts": dict(verdicts or {}),
        "tables": {title: [dict(row) for row in rows] for title, rows in tables.items()},
    }
    typer.echo(markdown(result))
    if json_path is not None:
        write_json(json_path, result)
    return result


def markdown(result: Mapping[str, Any]) -> str:
    """A result as markdown tables, with its requirements and its machine below."""
    lines = [f"### {result['case']}", "", f"`{result['command']}`"]
    for title, rows in result["tables"].items():
        columns = list(rows[0])
        lines += ["", f"{title}:", "", "| " + " | ".join(columns) + " |"]
        lines.append("|" + "|".join(" --- " for _ in columns) + "|")
        lines += ["| " + " | ".join(cell(row[c]) for c in columns) + " |" for row in rows]
    lines.append("")
    for requirement, met in result["verdicts"].items():
        lines.append(f"- {requirement}: {'met' if met else '**not met**'}")
    machine = result["machine"]
    lines.append(
        f"- {machine['device_name']} ({machine['device']}), {machine['cpu_count']} CPU cores, "
        f"{machine['torch_threads']} threads, torch {machine['torch']}, seed {result['seed']}"
    )
    return "\n".join(lines)


def read_results(path: Path) -> list[dict[str, Any]]:
    """The results in a file: one case's, or those of `all`."""
    written = json.loads(path.read_text())
    results: list[dict[str, Any]] = written.get("results", [written])
    return results


def command() -> str:
    """The command line, with every absolute path cut down to its last part."""
    return " ".join(["python -m benchmarks", *map(without_absolute_paths, sys.argv[1:])])


def without_absolute_paths(text: str) -> str:
    """A text with every absolute path cut down to its last part."""
    return re.sub(r"(?<![\w.])/(?:[^/\s]+/)*", "", text)


def cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) >= 1e-3 or value == 0 else f"{value:.1e}"
    return str(value)


def mean_and_deviation(values: Sequence[float], *, digits: int = 2) -> str:
    """Mean ± sample standard deviation; of one value no deviation."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean

"""A recipe trained with several methods and seeds, and the table that papers print.

It has accuracy over seeds, parameters, FLOPs, what ELA skips and what EBQM costs, and training
time: of the runs, and of training steps of all networks in turn.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.support.contestants import PUBLISHED_B
from benchmarks.support.method import DIA, MRLA_B, Method, all_methods, backbone_of
from benchmarks.support.results import NOTHING, JsonPath, markdown, mean_and_deviation, publish
from benchmarks.support.runs import Run, make_run, run_all, without_folder
from benchmarks.support.steps import published_base, time_in_turn
from ela_probe.errors import OptionError
from ela_probe.evaluation.comparison import Timing
from ela_probe.system.device import resolve_device
from ela_probe.system.storage import output_directory, write_json, write_text
from ela_probe.training.recipes import read_recipe

Records = Sequence[Mapping[str, Any]]
ESTIMATE = "run / published (estimate)"


def run(
    recipe: Annotated[str, typer.Option(help="A YAML file, or a built-in recipe.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="A folder, with a subfolder for each run.")
    ],
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="May be repeated; NAME+ela trains NAME with ELA, NAME+ela:skip=0.5,action=drop "
            "with its own settings. Default: all networks of the zoo on the backbone of the "
            "recipe's model, and MRLA-B with ELA.",
        ),
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="May be repeated. Default: the recipe's.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at the same time.")] = 1,
    data: Annotated[str | None, typer.Option(help="Default: the recipe's.")] = None,
    data_root: Path | None = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Training images.")] = None,
    test_limit: Annotated[
        int | None, typer.Option(min=1, help="Test images; default: all.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    warmup: Annotated[float | None, typer.Option(min=0, help="Epochs.")] = None,
    ela: Annotated[
        str | None,
        typer.Option(
            help="Settings of every +ela, as for `ela-probe train`; its own settings win."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed training steps of each network.")] = 7,
    reference: Annotated[
        list[Path] | None,
        typer.Option(
            help="A checkout of bgx666/KCLA (CIFAR) or joyfang1106/MRLA (ImageNet); its MRLA-B is "
            "timed too. May be repeated."
        ),
    ] = None,
    finished: Annotated[
        bool, typer.Option("--finished", help="Train nothing: a table of the finished runs.")
    ] = False,
    device: str = "auto",
    json: JsonPath = None,
) -> None:
    """Train every method with every seed, measure them, and write table.md and table.json.

    A finished run is not repeated, an interrupted one is resumed. With several jobs the seeds of a
    method train side by side.
    """
    read = read_recipe(recipe)
    changes = {"epochs": epochs, "warmup_epochs": warmup}
    options = {"root": data_root, "limit": limit}
    methods = list(dict.fromkeys(Method.parse(text) for text in model or all_methods(read)))
    seeds = dict.fromkeys(seed or read.seeds)
    pairs = [(method, number) for number in seeds for method in methods]
    if jobs > 1:
        pairs = [(method, number) for method in methods for number in seeds]
    runs = [
        make_run(
            read,
            method,
            seed=number,
            source=read.source(data),
            options={name: value for name, value in options.items() if value is not None},
            changes={name: value for name, value in changes.items() if value is not None},
            ela=ela,
            output=output,
            device=device,
            progress=jobs == 1,
            test_limit=test_limit,
        )
        for method, number in pairs
    ]
    if finished:
        runs = [run for run in runs if run.record]
        if not runs:
            raise OptionError(
                f"{output} has no finished run of these methods; leave out --finished"
            )
    published = published_base(runs[0], reference) if reference else None
    output_directory(output)
    records = run_all(runs, jobs=jobs)
    where = resolve_device(device)
    steps = time_in_turn(runs, rounds=rounds, device=where, published=published)
    tables = {
        f"{Path(recipe).stem}, {len(seeds)} seeds": rows(records, steps),
        "Runs": run_rows(records),
        "Settings": [settings_row(runs, records, jobs=jobs, rounds=rounds)],
    }
    first = runs[0].config.seed
    result = publish("methods", tables, json_path=json, seed=first, device=where)
    write_json(output / "table.json", result)
    write_text(output / "table.md", markdown(result) + "\n")


def rows(records: Records, steps: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """A row for each method. Ratios are formed within a round (steps) or a seed (runs, which follow
    each other in time), and the medians over rounds or seeds are shown."""
    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        by_method.setdefault(record["method"], []).append(record)
    table = []
    for text, group in by_method.items():
        method = Method.parse(text)
        plain = backbone_of(method.model)
        base, dia = MRLA_B + plain, DIA + plain
        others = {"plain": plain, "MRLA-B": base} | ({"DIA": dia} if dia in by_method else {})
        row = {
            "method": method.label,
            "accuracy, %": mean_and_deviation([100 * r["accuracy"] for r in group]),
            "parameters": group[0]["parameters"],
            "MFLOPs": round(group[0]["flops"] / 1e6, 1),
        }
        for name, other in others.items():
            row[f"step / {name}"] = with_quartiles(Timing.of(steps[text], steps[other]))
        if PUBLISHED_B in steps:
            row["step / published"] = with_quartiles(Timing.of(steps[text], steps[PUBLISHED_B]))
        for name, other in others.items():
            row[f"run / {name}"] = with_range(run_ratios(group, by_method.get(other, [])))
        if PUBLISHED_B in steps:
            row[ESTIMATE] = with_range(
                estimated(group, by_method.get(base, []), steps[base], steps[PUBLISHED_B])
            )
        removed, kept = group[0]["removed"], group[0]["kept"]
        row |= {
            "run s": mean_and_deviation([training_seconds(r) for r in group], digits=1),
            "skipped": f"{removed} of {kept + removed}" if removed else NOTHING,
            "EBQM s": mean_of(group, "ebqm_seconds", "{:.2f}"),
            "EBQM / training": mean_of(group, "ebqm_share", "{:.1%}"),
        }
        table.append(row)
    return table


def training_seconds(record: Mapping[str, Any]) -> float:
    """The seconds of all epochs of a run."""
    return float(sum(record["epoch_seconds"]))


def run_ratios(group: Records, others: Records) -> list[float]:
    """Ratios of training times, for the seeds that both have."""
    of_other = {record["seed"]: training_seconds(record) for record in others}
    return [training_seconds(r) / of_other[r["seed"]] for r in group if r["seed"] in of_other]


def estimated(
    group: Records, base: Records, ours: Sequence[float], published: Sequence[float]
) -> list[float]:
    """Ratios of training times to the estimated time of the published MRLA-B, which is not trained.

    The estimate is the run of our MRLA-B with the same seed (`base`), with the training steps
    longer by the ratio of timed steps, and everything else (reading, validation) the same.
    """
    slower = Timing.of(published, ours).ratio
    step = statistics.median(ours)
    longer = {}
    for record in base:
        config = record["settings"]["config"]
        count = config["epochs"] * math.ceil(record["trained"] / config["batch_size"])
        part = min(1.0, count * step / training_seconds(record))
        longer[record["seed"]] = 1 + part * (slower - 1)
    seeds = [r["seed"] for r in group if r["seed"] in longer]
    return [
        ratio / longer[seed] for seed, ratio in zip(seeds, run_ratios(group, base), strict=True)
    ]


def run_rows(records: Records) -> list[dict[str, Any]]:
    return [
        {
            "method": Method.parse(record["method"]).label,
            "seed": record["seed"],
            "accuracy": round(record["accuracy"], 5),
            "loss": round(record["loss"], 4),
            "seconds": round(training_seconds(record), 2),
            "removed": record["removed"],
            "EBQM s": mean_of([record], "ebqm_seconds", "{:.3f}"),
        }
        for record in records
    ]


def settings_row(
    runs: Sequence[Run], records: Records, *, jobs: int, rounds: int
) -> dict[str, Any]:
    config = runs[0].config
    return {
        "data": without_folder(runs[0].source),
        "training images": records[0]["trained"],
        "test images": records[0]["tested"],
        "epochs": config.epochs,
        "batch": config.batch_size,
        "lr": config.lr,
        "schedule": config.schedule,
        "runs side by side": jobs,
        "rounds": rounds,
    }


def mean_of(records: Records, key: str, written: str) -> str:
    """The mean as text; NOTHING where a record has no value."""
    values = [record[key] for record in records]
    return NOTHING if None in values else written.format(statistics.fmean(values))


def with_quartiles(timing: Timing) -> str:
    return f"{timing.ratio:.2f} ({timing.ratio_lower:.2f}-{timing.ratio_upper:.2f})"


def with_range(values: Sequence[float]) -> str:
    """Median, least and largest; only the value where there is one, NOTHING where there is none."""
    if not values:
        return NOTHING
    median = f"{statistics.median(values):.2f}"
    return f"{median} ({min(values):.2f}-{max(values):.2f})" if len(values) > 1 else median

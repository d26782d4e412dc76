"""The case `methods`: a recipe for a list of models and seeds, and the table that papers print.

Accuracy over seeds, parameters, FLOPs, what ELA skips and what EBQM costs; training time from the
runs, and from training steps of all networks in alternation.
"""

import json
import multiprocessing
import re
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.results import JsonPath, markdown, publish
from ela_probe.checkpoint import Checkpoint, read_checkpoint
from ela_probe.comparing import retrievals
from ela_probe.data import Data
from ela_probe.data.spec import absolute_source
from ela_probe.device import resolve_device
from ela_probe.errors import OptionError
from ela_probe.evaluation import evaluate
from ela_probe.models import FAMILIES, ModelSpec, family_of, parameter_count
from ela_probe.pipeline import train
from ela_probe.profiling import Timing, alternate, count_flops, cuda_devices, training_step
from ela_probe.recipes import Recipe, read_recipe
from ela_probe.storage import output_directory, write_json, write_text
from ela_probe.training import ELAConfig, TrainConfig
from ela_probe.training.record import LAST, RESUME

WITH_ELA = "+ela"
MRLA_B = "mrla_b_"
RESULT = "result.json"
NOTHING = "–"


@dataclass(frozen=True)
class Run:
    """One training run: what it needs, so that another process can do it.

    source: of the data. options: of `Recipe.open_data`. test_limit: test images, all when None.
    """

    method: str
    spec: ModelSpec
    config: TrainConfig
    ela: ELAConfig | None
    recipe: Recipe
    source: str
    options: Mapping[str, Any]
    folder: Path
    device: str
    progress: bool
    test_limit: int | None

    @property
    def settings(self) -> dict[str, Any]:
        """What makes its result what it is; where the data lie does not."""
        recipe = self.recipe.data.model_dump(exclude={"source"}, exclude_none=True)
        options = {k: v for k, v in self.options.items() if k not in ("root", "download")}
        return {
            "model": self.spec.model_dump(mode="json"),
            "config": self.config.model_dump(mode="json", exclude={"num_workers"}),
            "ela": None if self.ela is None else self.ela.model_dump(mode="json"),
            "data": {"source": short(self.source), **recipe, **options},
            "test_limit": self.test_limit,
        }

    def open_data(self) -> Data:
        return self.recipe.open_data(self.source, seed=self.config.seed, **self.options)


def run(
    recipe: Annotated[str, typer.Option(help="A YAML file, or a built-in recipe.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="A folder; a run in each of its.")],
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="May be repeated; NAME+ela trains NAME with ELA. Default: all that the zoo has on "
            "the backbone of the recipe's model, and MRLA-B with ELA.",
        ),
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="May be repeated. Default: the recipe's.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs side by side.")] = 1,
    data: Annotated[str | None, typer.Option(help="Default: the recipe's.")] = None,
    data_root: Path | None = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Training images.")] = None,
    test_limit: Annotated[int | None, typer.Option(min=1, help="Test images; all.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    warmup: Annotated[float | None, typer.Option(min=0, help="Epochs.")] = None,
    ela: Annotated[str | None, typer.Option(help="Of NAME+ela, as for `ela-probe train`.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed training steps each.")] = 7,
    device: str = "auto",
    json: JsonPath = None,
) -> None:
    """Train every model with every seed, measure them, and write table.md and table.json.

    A run that is finished is not repeated, one that was interrupted goes on.
    """
    read = read_recipe(recipe)
    changes = {"epochs": epochs, "warmup_epochs": warmup}
    options = {"root": data_root, "limit": limit}
    methods = list(dict.fromkeys(model or all_methods(read)))
    runs = [
        planned(
            read,
            method,
            seed=number,
            source=read.source(data),
            options={name: value for name, value in options.items() if value is not None},
            changes={name: value for name, value in changes.items() if value is not None},
            ela=ela,
            folder=output / f"{method}-s{number}",
            device=device,
            progress=jobs == 1,
            test_limit=test_limit,
        )
        for number in dict.fromkeys(seed or read.seeds)
        for method in methods
    ]
    output_directory(output)
    records = carried_out(runs, jobs=jobs)
    where = resolve_device(device)
    steps = side_by_side(runs, rounds=rounds, device=where)
    tables = {
        f"{Path(recipe).stem}, {len(records) // len(methods)} seeds": rows(records, steps),
        "Runs": each_run(records),
        "Settings": [settings_row(runs, records, jobs=jobs, rounds=rounds)],
    }
    first = runs[0].config.seed
    result = publish("methods", tables, json_path=json, seed=first, device=where)
    write_json(output / "table.json", result)
    write_text(output / "table.md", markdown(result) + "\n")


def all_methods(recipe: Recipe) -> list[str]:
    """Every attention of the zoo on the recipe's backbone; MRLA-B also with ELA."""
    backbone = backbone_of(recipe.model_spec().name)
    depth = re.sub(r"\D", "", backbone)
    names = [f"{family}{depth}" for family in FAMILIES if FAMILIES[family].reads == "images"]
    return [name for name in names if backbone_of(name) == backbone] + [
        f"{MRLA_B}{backbone}{WITH_ELA}"
    ]


def backbone_of(model: str) -> str:
    """`resnet20` of `mrla_b_resnet20`. Raises OptionError: it is no ResNet of the zoo."""
    match = re.fullmatch(r"(?:.+?_)??((?:imagenet_)?resnet\d+)", model)
    if match is None or family_of(model) is None:
        raise OptionError(f"model {model!r} came; expected a ResNet of `ela-probe models`")
    return match[1]


def planned(
    recipe: Recipe,
    method: str,
    *,
    seed: int,
    source: str,
    options: Mapping[str, Any],
    changes: Mapping[str, Any],
    ela: str | None,
    folder: Path,
    device: str,
    progress: bool,
    test_limit: int | None,
) -> Run:
    """A run that is known to be possible: the model exists, the settings fit.

    Raises:
        OptionError, ModelError, DataError: they don't.
    """
    name = method.removesuffix(WITH_ELA)
    backbone_of(name)
    spec = recipe.model_spec(name)
    with torch.device("meta"):
        spec.build()
    config = recipe.config(**{**changes, "seed": seed})
    settings = recipe.ela_config(ela) or ELAConfig()
    if method != name:
        settings.schedule(config.epochs)
    return Run(
        method=method,
        spec=spec,
        config=config,
        ela=settings if method != name else None,
        recipe=recipe,
        source=absolute_source(source),
        options=options,
        folder=folder,
        device=device,
        progress=progress,
        test_limit=test_limit,
    )


def carried_out(runs: Sequence[Run], *, jobs: int) -> list[dict[str, Any]]:
    """The records of the runs, in their order; `jobs` at a time, each in a process of its own.

    Raises:
        OptionError: a folder holds a run with other settings.
    """
    known = [recorded(run) for run in runs]
    if jobs == 1:
        return [done or carry_out(run) for run, done in zip(runs, known, strict=True)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        try:
            waiting = [
                None if done else pool.submit(carry_out, run)
                for run, done in zip(runs, known, strict=True)
            ]
            return [
                done or task.result()  # type: ignore[union-attr]
                for task, done in zip(waiting, known, strict=True)
            ]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def recorded(run: Run) -> dict[str, Any] | None:
    """The record of a finished run; None if it is yet to be done."""
    path = run.folder / RESULT
    if not path.is_file():
        return None
    record: dict[str, Any] = json.loads(path.read_text())
    differing = [
        f"{part} {record['settings'].get(part)} then, {value} now"
        for part, value in run.settings.items()
        if record["settings"].get(part) != json.loads(json.dumps(value))
    ]
    if differing:
        raise OptionError(
            f"{run.folder} holds a run with other settings ({'; '.join(differing)}): choose "
            "another --output"
        )
    return record


def carry_out(run: Run) -> dict[str, Any]:
    """Train, or go on, and evaluate the last epoch on the test split."""
    data = run.open_data()
    trained = train(
        run.spec,
        data,
        run.config,
        output=run.folder,
        ela=run.ela,
        device=run.device,
        resume=(run.folder / RESUME).is_file(),
        progress=run.progress,
    )
    loaded = read_checkpoint(trained.last)
    tests = data.loader("test", batch_size=256, limit=run.test_limit)
    measured = evaluate(loaded.model, tests, resolve_device(run.device), progress=run.progress)
    inputs, _ = data.spec.example()
    record = {
        "method": run.method,
        "seed": run.config.seed,
        "accuracy": measured["accuracy"],
        "loss": measured["loss"],
        "tested": int(measured["samples"]),
        "trained": data.size("train"),
        "parameters": parameter_count(loaded.model),
        "flops": count_flops(loaded.model.cpu(), inputs.shape[1:]),
        "kept": retrievals(loaded.model),
        "removed": removed(loaded),
        "epoch_seconds": [row["seconds"] for row in trained.history],
        "ebqm_seconds": None if trained.ela is None else trained.ela["ebqm_seconds"],
        "ebqm_share": None if trained.ela is None else trained.ela["ebqm_share"],
        "settings": run.settings,
    }
    write_json(run.folder / RESULT, record)
    spent = sum(row["seconds"] for row in trained.history)
    typer.echo(f"{run.folder.name}: {measured['accuracy']:.2%}, {spent:.0f} s", err=True)
    return record


def removed(loaded: Checkpoint) -> int:
    """Retrievals that plans replaced or took away."""
    actions = [action for plan in loaded.header.plans for action in plan.actions.values()]
    return sum(action != "keep" for action in actions)


def side_by_side(
    runs: Sequence[Run], *, rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of a training step of each method's trained network, round by round, and of the plain
    network and MRLA-B, all on one batch of the first run's data."""
    first = runs[0]
    data = first.open_data()
    batch = next(iter(data.loader("train", batch_size=first.config.batch_size)))
    images, labels = (part.to(device) for part in batch)
    models = {run.method: read_checkpoint(run.folder / LAST).model for run in reversed(runs)}
    backbone = backbone_of(first.spec.name)
    for name in (backbone, f"{MRLA_B}{backbone}"):
        if name not in models:
            spec = first.recipe.model_spec(name, data.spec.model_arguments())
            models[name] = spec.build()
    with torch.random.fork_rng(devices=cuda_devices(device)):
        steps = {
            name: training_step(model.to(device), images, labels)
            for name, model in sorted(models.items())
        }
        return alternate(steps, rounds=rounds, warmup=2, device=device, description="timing steps")


def rows(
    records: Sequence[Mapping[str, Any]], steps: Mapping[str, Sequence[float]]
) -> list[dict[str, Any]]:
    """A row a method. Ratios of steps are medians of the rounds'; those of runs of mean times."""
    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        by_method.setdefault(record["method"], []).append(record)
    spent = {
        method: statistics.fmean(sum(r["epoch_seconds"]) for r in group)
        for method, group in by_method.items()
    }
    table = []
    for method, group in by_method.items():
        plain = backbone_of(method.removesuffix(WITH_ELA))
        base = MRLA_B + plain
        first = group[0]
        to_plain, to_base = (Timing.of(steps[method], steps[name]) for name in (plain, base))
        table.append(
            {
                "method": method,
                "accuracy, %": mean_and_deviation([100 * r["accuracy"] for r in group]),
                "parameters": first["parameters"],
                "MFLOPs": round(first["flops"] / 1e6, 1),
                "step / plain": in_quartiles(to_plain),
                "step / MRLA-B": in_quartiles(to_base),
                "run / plain": ratio(spent, method, plain),
                "run / MRLA-B": ratio(spent, method, base),
                "run s": round(spent[method], 1),
                "skipped": f"{first['removed']} of {first['kept'] + first['removed']}"
                if first["removed"]
                else NOTHING,
                "EBQM s": mean_of(group, "ebqm_seconds", "{:.2f}"),
                "EBQM / training": mean_of(group, "ebqm_share", "{:.1%}"),
            }
        )
    return table


def each_run(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "method": record["method"],
            "seed": record["seed"],
            "accuracy": round(record["accuracy"], 5),
            "loss": round(record["loss"], 4),
            "seconds": round(sum(record["epoch_seconds"]), 2),
            "removed": record["removed"],
            "EBQM s": mean_of([record], "ebqm_seconds", "{:.3f}"),
        }
        for record in records
    ]


def settings_row(
    runs: Sequence[Run], records: Sequence[Mapping[str, Any]], *, jobs: int, rounds: int
) -> dict[str, Any]:
    config = runs[0].config
    return {
        "data": short(runs[0].source),
        "training images": records[0]["trained"],
        "test images": records[0]["tested"],
        "epochs": config.epochs,
        "batch": config.batch_size,
        "lr": config.lr,
        "schedule": config.schedule,
        "runs side by side": jobs,
        "rounds": rounds,
    }


def mean_and_deviation(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation; of one value no deviation."""
    mean = statistics.fmean(values)
    return f"{mean:.2f} ± {statistics.stdev(values):.2f}" if len(values) > 1 else f"{mean:.2f}"


def mean_of(records: Sequence[Mapping[str, Any]], key: str, written: str) -> str:
    """The mean in writing, nothing where a record has none."""
    values = [record[key] for record in records]
    return NOTHING if None in values else written.format(statistics.fmean(values))


def in_quartiles(timing: Timing) -> str:
    return f"{timing.ratio:.2f} ({timing.ratio_lower:.2f}-{timing.ratio_upper:.2f})"


def ratio(spent: Mapping[str, float], method: str, other: str) -> str:
    return f"{spent[method] / spent[other]:.2f}" if other in spent else NOTHING


def short(source: str) -> str:
    """A source without the folder that it lies in."""
    kind, colon, path = source.partition(":")
    return f"{kind}{colon}{Path(path).name}" if colon else source

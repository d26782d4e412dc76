"""The runs of a table: a method trained with a seed, in a folder; resumable, or done already."""

import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import typer

from benchmarks.methods import Method
from benchmarks.records import RESULT, recorded
from ela_probe.checkpoint import read_checkpoint
from ela_probe.data.opening import Data
from ela_probe.data.source_names import absolute_source
from ela_probe.evaluation.compare import stages_of
from ela_probe.evaluation.evaluate import evaluate
from ela_probe.evaluation.profiling import count_flops
from ela_probe.models.registry import ModelSpec, parameter_count
from ela_probe.pipeline import train
from ela_probe.system.device import resolve_device
from ela_probe.system.storage import write_json
from ela_probe.training.config import TrainConfig
from ela_probe.training.ela.config import ELAConfig
from ela_probe.training.recipes import Recipe
from ela_probe.training.record import RESUME


@dataclass(frozen=True)
class Run:
    """One training run: what it needs, so that another process can do it.

    source: of the data. options: of `Recipe.open_data`. test_limit: test images, all when None.
    """

    method: Method
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
            "config": self.config.result_settings(),
            "ela": None if self.ela is None else self.ela.model_dump(mode="json"),
            "data": {"source": short(self.source), **recipe, **options},
            "test_limit": self.test_limit,
        }

    @property
    def record(self) -> dict[str, Any] | None:
        """Of the finished run; None if it is yet to be done. Raises OptionError: of another."""
        defaults = {
            "config": TrainConfig().result_settings(),
            "ela": ELAConfig().model_dump(mode="json"),
        }
        return recorded(self.folder, self.settings, defaults=defaults)

    def open_data(self) -> Data:
        return self.recipe.open_data(self.source, seed=self.config.seed, **self.options)


def planned(
    recipe: Recipe,
    method: Method,
    *,
    seed: int,
    source: str,
    options: Mapping[str, Any],
    changes: Mapping[str, Any],
    ela: str | None,
    output: Path,
    device: str,
    progress: bool,
    test_limit: int | None,
) -> Run:
    """A run that is known to be possible: the model exists, the settings fit.

    Raises:
        OptionError, ModelError, DataError: they don't.
    """
    spec = recipe.model_spec(method.model)
    with torch.device("meta"):
        spec.build()
    config = recipe.config(**{**changes, "seed": seed})
    return Run(
        method=method,
        spec=spec,
        config=config,
        ela=method.settings(recipe, ela, epochs=config.epochs),
        recipe=recipe,
        source=absolute_source(source),
        options=options,
        folder=output / f"{method.folder}-s{seed}",
        device=device,
        progress=progress,
        test_limit=test_limit,
    )


def carried_out(runs: Sequence[Run], *, jobs: int) -> list[dict[str, Any]]:
    """The records of the runs, in their order; `jobs` at a time, each in a process of its own.

    Raises:
        OptionError: a folder holds a run with other settings.
    """
    known = [run.record for run in runs]
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
        "method": str(run.method),
        "seed": run.config.seed,
        "accuracy": measured["accuracy"],
        "loss": measured["loss"],
        "tested": int(measured["samples"]),
        "trained": data.size("train"),
        "parameters": parameter_count(loaded.model),
        "flops": count_flops(loaded.model.cpu(), inputs.shape[1:]),
        "kept": sum(len(stage.sites) for stage in stages_of(loaded.model)),
        "removed": sum(len(plan.changes) for plan in loaded.header.plans),
        "epoch_seconds": [row["seconds"] for row in trained.history],
        "ebqm_seconds": None if trained.ela is None else trained.ela["ebqm_seconds"],
        "ebqm_share": None if trained.ela is None else trained.ela["ebqm_share"],
        "settings": run.settings,
    }
    write_json(run.folder / RESULT, record)
    spent = sum(row["seconds"] for row in trained.history)
    typer.echo(f"{run.folder.name}: {measured['accuracy']:.2%}, {spent:.0f} s", err=True)
    return record


def short(source: str) -> str:
    """A source without the folder that it lies in."""
    kind, colon, path = source.partition(":")
    return f"{kind}{colon}{Path(path).name}" if colon else source

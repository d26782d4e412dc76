"""The runs of `methods`: a method trained with a seed, in a folder. They can be resumed."""

import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import typer

from benchmarks.support.method import Method
from benchmarks.support.records import RESULT, read_record
from ela_probe.checkpoint import read_checkpoint
from ela_probe.data.opening import Data
from ela_probe.data.source_names import absolute_source
from ela_probe.evaluation.compare import stages_of
from ela_probe.evaluation.evaluate import evaluate
from ela_probe.evaluation.profiling import count_flops, first_tensor
from ela_probe.models.registry import ModelSpec, parameter_count
from ela_probe.pipeline.train import train
from ela_probe.system.device import resolve_device
from ela_probe.system.storage import write_json
from ela_probe.training.config import TrainConfig
from ela_probe.training.ela.config import ELAConfig
from ela_probe.training.recipes import Recipe
from ela_probe.training.run_folder import RESUME


@dataclass(frozen=True)
class Run:
    """One training run, with all that another process needs to do it.

    source: of the data. options: of `Recipe.open_data`. test_limit: test images; None for all.
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
        """All that its result depends on; the folder of the data is not part of it."""
        recipe = self.recipe.data.model_dump(exclude={"source"}, exclude_none=True)
        options = {k: v for k, v in self.options.items() if k not in ("root", "download")}
        return {
            "model": self.spec.model_dump(mode="json"),
            "config": self.config.result_settings(),
            "ela": None if self.ela is None else self.ela.model_dump(mode="json"),
            "data": {"source": without_folder(self.source), **recipe, **options},
            "test_limit": self.test_limit,
        }

    @property
    def record(self) -> dict[str, Any] | None:
        """The finished run's; None if it is not finished. Raises OptionError: other settings."""
        defaults = {
            "config": TrainConfig().result_settings(),
            "ela": ELAConfig().model_dump(mode="json"),
        }
        return read_record(self.folder, self.settings, defaults=defaults)

    def open_data(self) -> Data:
        return self.recipe.open_data(self.source, seed=self.config.seed, **self.options)


def make_run(
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
    """A run, after a check that the model exists and the settings fit it.

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


def run_all(runs: Sequence[Run], *, jobs: int) -> list[dict[str, Any]]:
    """The records of the runs, in their order; `jobs` runs at a time, each in its own process.

    Raises:
        OptionError: a folder holds a run with other settings.
    """
    known = [run.record for run in runs]
    if jobs == 1:
        return [done or train_and_test(run) for run, done in zip(runs, known, strict=True)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        try:
            waiting = [
                None if done else pool.submit(train_and_test, run)
                for run, done in zip(runs, known, strict=True)
            ]
            return [
                done or task.result()  # type: ignore[union-attr]
                for task, done in zip(waiting, known, strict=True)
            ]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def train_and_test(run: Run) -> dict[str, Any]:
    """Train or resume, and evaluate the last epoch on the test split."""
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
    inputs = first_tensor(data.spec.example()[0])
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


def without_folder(source: str) -> str:
    """A source with only the last part of its path."""
    kind, colon, path = source.partition(":")
    return f"{kind}{colon}{Path(path).name}" if colon else source

"""What tests/test_processes.py runs in two processes.

`torchrun --nproc-per-node 2 -m tests.support.two_processes FOLDER DATA`
"""

import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytorch_lightning as pl
import torch
from torch import nn

from ela_probe import ELA, SkipPlan
from ela_probe.checkpoint import read_checkpoint
from ela_probe.data.opening import open_data
from ela_probe.pipeline import train as verb
from ela_probe.pipeline.analyze import analyze_checkpoint
from ela_probe.system.processes import Processes, all_gather, is_first, process_count, shutdown
from ela_probe.training.config import TrainConfig
from ela_probe.training.trainer import TrainingInterrupted, fit
from tests.support.networks import without_norms
from tests.support.training import Classifier, InterruptAt, Watch, fitted, trained

TWO = Processes(2)
EXACT = TrainConfig(epochs=2, batch_size=24, lr=0.05)
SAMPLINGS: dict[str, dict[str, Any]] = {
    "every": {"batch_size": 5, "every": 2},
    "most": {"batch_size": 4, "max_batches": 3},
}


def everywhere_the_same(value: Any) -> bool:
    values = all_gather(value)
    return all(other == values[0] for other in values)


def numbers(module: nn.Module) -> dict[str, list[float]]:
    """Of the parameters: running statistics are each process's own until the next step."""
    return {name: value.flatten().tolist() for name, value in module.named_parameters()}


def in_anyones_trainer() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, options, strategy in (
        ("skip", {}, "ddp"),
        ("drop", {"action": "drop"}, "ddp"),
        ("affine", {"action": "affine", "planner": "damage"}, "ddp"),
        ("stochastic", {"stochastic": True, "ramp": 3}, "ddp_find_unused_parameters_true"),
    ):
        module, watch = Classifier(), Watch()
        settings: dict[str, Any] = {"skip": 0.45, "warmup": 1, "ramp": 2, **options}
        ela = ELA(**settings)
        trainer = fitted(module, ela, watch, devices=2, strategy=strategy)
        assert trainer.world_size == 2
        assert ela.plan is not None
        found[name] = {
            "plan": json.loads(ela.plan.model_dump_json()),
            "same plan": everywhere_the_same(ela.plan.model_dump_json()),
            "same weights": everywhere_the_same(numbers(module)),
            "own batches": len({tuple(losses) for losses in all_gather(module.losses)}) == 2,
            "samples": ela.analysis.provenance.samples,
            "sites": [len(sites) for sites in watch.sites],
            "optimizer follows": all(watch.known),
        }
    return found


def as_alone(prefix: str, folder: Path) -> dict[str, Any]:
    def save(path: Path, state: Any, metrics: Any) -> None:
        torch.save(dict(state), path)

    data = open_data(f"npz:{prefix}", val_fraction=0.2, augment="none")
    model = without_norms()
    result = fit(
        model, data, EXACT, output=folder, save=save, device="cpu", processes=TWO, progress=False
    )
    return {"history": result.history}


def interrupted(prefix: Path, folder: Path) -> dict[str, Any]:
    whole = trained(prefix, folder / "whole", processes=TWO)

    def cut(*arguments: Any, callbacks: list[pl.Callback], **options: Any) -> Any:
        return fit(*arguments, callbacks=[*callbacks, InterruptAt(3, 2)], **options)

    told = ""
    try:
        with mock.patch.object(verb, "fit", cut):
            trained(prefix, folder / "cut", processes=TWO)
    except TrainingInterrupted as interruption:
        told = str(interruption)
    trained(prefix, folder / "cut", processes=TWO, resume=True)
    return {"told": told, "last": str(whole.last)}


def tuned(last: Path, folder: Path) -> dict[str, Any]:
    found = {}
    config = TrainConfig(epochs=2, batch_size=8, lr=0.01)
    for strategy in ("ddp", "fsdp"):
        result = verb.finetune(
            read_checkpoint(last),
            config,
            output=folder / f"{strategy}.pt",
            device="cpu",
            processes=Processes(2, 1, strategy),
            progress=False,
        )
        found[strategy] = [row["train_loss"] for row in result.history]
    resumed = verb.finetune(
        read_checkpoint(last), config, output=folder / "fsdp.pt", device="cpu", resume=True,
        progress=False, processes=Processes(2, 1, "fsdp"),
    )  # fmt: skip
    found["resumed"] = [row["train_loss"] for row in resumed.history]
    return found


def main(folder: Path, prefix: Path) -> None:
    TWO.launch(torch.device("cpu"))
    assert process_count() == 2
    found: dict[str, Any] = {
        "anyones": in_anyones_trainer(),
        "alone": as_alone(str(prefix), folder / "alone"),
        "interrupted": interrupted(prefix, folder),
    }
    last = Path(found["interrupted"]["last"])
    for name, sampling in SAMPLINGS.items():
        analysis = analyze_checkpoint(
            read_checkpoint(last), device="cpu", processes=TWO, progress=False, **sampling
        )
        if is_first():
            analysis.save(folder / f"analysis-{name}")
    found["tuned"] = tuned(last, folder)
    found["skipped"] = SkipPlan.load(last.with_name("plan.json")).skipped
    if is_first():
        (folder / "found.json").write_text(json.dumps(found))
    shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

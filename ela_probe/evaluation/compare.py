"""`compare`: the accuracy and the costs of models, side by side on one machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ela_probe.discovery.discover import discover
from ela_probe.errors import DataError, ModelError, OptionError
from ela_probe.evaluation.evaluate import evaluate
from ela_probe.evaluation.profiling import (
    Latency,
    Machine,
    PeakMemory,
    count_flops,
    describe_machine,
    measure_latency,
    measure_memory,
)
from ela_probe.forward import unwrap
from ela_probe.models.registry import parameter_count
from ela_probe.system.progress import track
from ela_probe.system.validation import Strict

if TYPE_CHECKING:
    import pandas as pd

HEADINGS = (
    "model", "accuracy", "loss", "parameters", "MFLOPs", "retrievals", "training ms", "ratio of it",
    "inference ms", "ratio of it", "training MiB", "inference MiB",
)  # fmt: skip


@dataclass(frozen=True)
class CompareEntry:
    """A model to compare, its name in the table, and how many retrievals its plan removed."""

    name: str
    model: nn.Module
    skipped: int = 0


class Compared(Strict):
    """How good one model is, and what it costs.

    accuracy: fraction of 1; loss: mean cross entropy in nats; perplexity: exp(loss), for language
    models only; flops: of one sample's forward pass (convolutions and matrix products); kept,
    skipped: numbers of retrievals that are formed, and that were removed; latency: seconds per
    batch; memory: bytes at the peak of a step.
    """

    name: str
    accuracy: float
    loss: float
    perplexity: float | None = None
    samples: int
    parameters: int
    parameters_ratio: float
    flops: int
    flops_ratio: float
    kept: int
    skipped: int
    latency: Latency
    memory: PeakMemory


class Comparison(Strict):
    """Models side by side; every ratio is to the first."""

    models: tuple[Compared, ...]
    batch_shape: tuple[int, ...]
    machine: Machine

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Headings and a row of cells for each model, to print.

        Language models have a column of perplexity in place of the loss.
        """
        language = any(row.perplexity is not None for row in self.models)
        headings = tuple("perplexity" if language and h == "loss" else h for h in HEADINGS)
        rows: list[tuple[str, ...]] = []
        for row in self.models:
            total = row.kept + row.skipped
            rows.append(
                (
                    row.name,
                    f"{row.accuracy:.2%}",
                    f"{row.loss:.4f}" if row.perplexity is None else f"{row.perplexity:.3f}",
                    f"{row.parameters:,}",
                    f"{row.flops / 1e6:.1f}",
                    f"{row.kept} of {total}" if row.skipped else str(row.kept),
                    f"{row.latency.training.median * 1e3:.1f}",
                    f"{row.latency.training.ratio:.2f}",
                    f"{row.latency.inference.median * 1e3:.1f}",
                    f"{row.latency.inference.ratio:.2f}",
                    f"{row.memory.training / 2**20:.1f}",
                    f"{row.memory.inference / 2**20:.1f}",
                )
            )
        return headings, rows

    def to_frame(self) -> pd.DataFrame:
        """One row a model, indexed by name; nested figures as `latency.training.median`."""
        import pandas as pd

        return pd.json_normalize([row.model_dump() for row in self.models]).set_index("name")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return self.model_dump(mode="json")


def compare(
    entries: Sequence[CompareEntry],
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    batch: tuple[Tensor, Tensor] | None = None,
    device: torch.device | None = None,
    repeats: int = 10,
    warmup: int = 2,
    progress: bool = True,
) -> Comparison:
    """Evaluate each model on all of `loader`, and time all of them in turns on `batch`.

    Args:
        entries: the models. The others are compared with the first one.
        loader: batches as `evaluate` takes them, normally of the test split.
        batch: time and memory are measured on it; the loader's first batch when None.
        device: where to compute; the CPU when None. The models are moved there.
        repeats, warmup: the rounds of timing, and the rounds of warm-up before them.

    Raises:
        OptionError: no entries, two of the same name, or no rounds.
        DataError: no samples, or labels outside a model's classes.
        ModelError: a model was compiled.
    """
    names = [entry.name for entry in entries]
    if not names or len(set(names)) < len(names):
        raise OptionError(f"got the models {names}; expected one or more with different names")
    if batch is None:
        batch = next(iter(loader), None)
        if batch is None:
            raise DataError("there is nothing to compare on: the split is empty")
    device = device or torch.device("cpu")
    models = {entry.name: unwrap(entry.model).to(device) for entry in entries}
    results = {
        name: evaluate(model, loader, device, progress=progress) for name, model in models.items()
    }
    latency = measure_latency(
        models, batch, device=device, repeats=repeats, warmup=warmup, progress=progress
    )
    memory = {
        name: measure_memory(model, batch, device=device)
        for name, model in track(list(models.items()), "measuring memory", progress=progress)
    }
    sample, dtype = batch[0].shape[1:], batch[0].dtype
    flops = {name: count_flops(model, sample, dtype=dtype) for name, model in models.items()}
    parameters = {name: parameter_count(model) for name, model in models.items()}
    first = names[0]
    return Comparison(
        models=tuple(
            Compared(
                name=entry.name,
                accuracy=results[entry.name]["accuracy"],
                loss=results[entry.name]["loss"],
                perplexity=results[entry.name].get("perplexity"),
                samples=int(results[entry.name]["samples"]),
                parameters=parameters[entry.name],
                parameters_ratio=parameters[entry.name] / max(1, parameters[first]),
                flops=flops[entry.name],
                flops_ratio=flops[entry.name] / max(1, flops[first]),
                kept=retrievals(models[entry.name]),
                skipped=entry.skipped,
                latency=latency[entry.name],
                memory=memory[entry.name],
            )
            for entry in entries
        ),
        batch_shape=tuple(batch[0].shape),
        machine=describe_machine(device),
    )


def retrievals(model: nn.Module) -> int:
    """The number of retrievals that a model forms; 0 if it has no layer attention."""
    try:
        return sum(len(stage.sites) for stage in discover(model).stages)
    except ModelError:
        return 0

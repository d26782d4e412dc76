"""`compare`: the accuracy and the costs of models, side by side on one machine."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ela_probe.discovery.discover import discover
from ela_probe.errors import DataError, ModelError, OptionError
from ela_probe.evaluation.comparison import Compared, Comparison
from ela_probe.evaluation.evaluate import evaluate
from ela_probe.evaluation.profiling import (
    count_flops,
    describe_machine,
    first_tensor,
    measure_latency,
    measure_memory,
)
from ela_probe.forward import check_has_values, refuse_compiled, unwrap
from ela_probe.models.registry import parameter_count
from ela_probe.sites import Stage, fingerprint
from ela_probe.system.numbers import finite_or_none
from ela_probe.system.progress import track


@dataclass(frozen=True)
class CompareEntry:
    """A model to compare, and its name in the table.

    skipped: how many retrievals its plans removed. unpruned: the fingerprint of the sites that it
    had before, which its first plan names; None for a model that was not pruned.
    """

    name: str
    model: nn.Module
    skipped: int = 0
    unpruned: str | None = None


def compare(
    entries: Sequence[CompareEntry],
    loader: Iterable[tuple[Any, Any]],
    *,
    batch: tuple[Any, Any] | None = None,
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
        ModelError: a model was compiled, or is on the meta device.
    """
    names = [entry.name for entry in entries]
    if not names or len(set(names)) < len(names):
        raise OptionError(f"got the models {names}; expected one or more with different names")
    for entry in entries:
        check_has_values(entry.model)
        refuse_compiled(entry.model)
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
    example = first_tensor(batch[0])
    sample, dtype = example.shape[1:], example.dtype
    flops = {name: count_flops(model, sample, dtype=dtype) for name, model in models.items()}
    parameters = {name: parameter_count(model) for name, model in models.items()}
    stages = {name: stages_of(model) for name, model in models.items()}
    first = names[0]
    return Comparison(
        models=tuple(
            Compared(
                name=entry.name,
                accuracy=finite_or_none(results[entry.name]["accuracy"]),
                loss=finite_or_none(results[entry.name]["loss"]),
                perplexity=finite_or_none(results[entry.name].get("perplexity")),
                precision=results[entry.name].get("precision"),
                samples=int(results[entry.name]["samples"]),
                parameters=parameters[entry.name],
                parameters_ratio=parameters[entry.name] / max(1, parameters[first]),
                flops=flops[entry.name],
                flops_ratio=flops[entry.name] / max(1, flops[first]),
                kept=sum(len(stage.sites) for stage in stages[entry.name]),
                skipped=entry.skipped,
                fingerprints=fingerprints(entry, stages[entry.name]),
                latency=latency[entry.name],
                memory=memory[entry.name],
            )
            for entry in entries
        ),
        batch_shape=tuple(example.shape),
        machine=describe_machine(device),
    )


def stages_of(model: nn.Module) -> Sequence[Stage]:
    """The stages of a model; none if it has no layer attention."""
    try:
        return discover(model).stages
    except ModelError:
        return ()


def fingerprints(entry: CompareEntry, stages: Sequence[Stage]) -> tuple[str, ...]:
    """Of a model's sites as they are, and as they were before it was pruned."""
    present = (fingerprint(stages),) if stages else ()
    return present if entry.unpruned is None else (*present, entry.unpruned)

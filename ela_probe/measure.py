"""`analyze`: run a model over data under the probe, and bring back the analysis."""

import math
from collections.abc import Iterable
from itertools import chain, islice
from typing import Any

import torch
from torch import nn

from ela_probe.adapters import adapter_for, unwrap
from ela_probe.analysis import Analysis, Provenance, StageAnalysis
from ela_probe.discovery import Discovery, discover
from ela_probe.ebqm import Target
from ela_probe.evaluation import evaluate
from ela_probe.inputs import inputs_and_labels
from ela_probe.probe import AttentionProbe


def analyze(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    labelled: bool = True,
    discovery: Discovery | None = None,
    device: torch.device | None = None,
    provenance: Provenance = Provenance(),
    target: Target = Target(),
    progress: bool = True,
) -> Analysis:
    """Measure the redundancy of a model's layer attention in eval mode, in one pass.

    Accuracy and loss are measured too where there are labels (N,) for every batch and logits
    (N, K), alone or as `logits` of the output; elsewhere they are None.

    Args:
        model: any model; its modes are put back afterwards.
        batches: e.g. a DataLoader, without augmentation. A pair is inputs and labels; anything
            else (a tensor, a dict, a longer tuple) is what the model is called with.
        labelled: False where a pair is two arguments of the model.
        discovery: what `discover` or `DeclaredAdapter.discover` found, when it was called already.
        device: where to compute; where the model is when None.
        provenance: what is known of model and data; samples, accuracy and time are filled in.
        target: of the skip scores.

    Raises:
        ModelError: the model has no layer attention, or was compiled.
        ProbeError: a site did not fire as expected, or weights are NaN.
        DataError: no batches, or labels outside the model's classes.
    """
    if discovery is None and adapter_for(unwrap(model)) is None:
        batches, first = _peeked(batches)
        discovery = discover(model, inputs_and_labels(first, labelled=labelled)[0])
    with AttentionProbe(model, discovery=discovery) as probe:
        result = evaluate(
            model, batches, device, labelled=labelled, measured=False, progress=progress
        )
    return from_probe(
        probe,
        provenance=provenance.model_copy(
            update={
                "samples": int(result["samples"]),
                "accuracy": None if math.isnan(result["accuracy"]) else result["accuracy"],
                "loss": None if math.isnan(result["loss"]) else result["loss"],
                "perplexity": result.get("perplexity"),
                "seconds": result["seconds"],
            }
        ),
        target=target,
    )


def from_probe(
    probe: AttentionProbe, *, provenance: Provenance = Provenance(), target: Target = Target()
) -> Analysis:
    """The analysis of what a probe has recorded, whatever the model's task.

    Raises:
        AnalysisError: nothing was recorded.
    """
    return Analysis(
        tuple(
            StageAnalysis.from_metric(stage, probe.metrics[stage.name].compute())
            for stage in probe.stages
        ),
        provenance,
        target,
    )


def _peeked(batches: Iterable[Any]) -> tuple[Iterable[Any], Any]:
    """All the batches, and the first of them (None if there is none)."""
    iterator = iter(batches)
    if iterator is not batches:
        return batches, next(iterator, None)
    first = list(islice(iterator, 1))
    return chain(first, iterator), first[0] if first else None

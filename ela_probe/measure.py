"""`analyze`: run a model over data under the probe, and bring back the analysis."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ela_probe.analysis import Analysis, Provenance, StageAnalysis
from ela_probe.ebqm import Target
from ela_probe.evaluation import evaluate
from ela_probe.probe import AttentionProbe


def analyze(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    device: torch.device | None = None,
    provenance: Provenance = Provenance(),
    target: Target = Target(),
    progress: bool = True,
) -> Analysis:
    """Measure the redundancy of a classifier's layer attention in eval mode, in one pass.

    Args:
        model: as in `evaluate`; its modes are put back afterwards.
        batches: inputs and labels, e.g. a DataLoader; without augmentation.
        device: where to compute; where the model is when None.
        provenance: what is known of model and data; samples, accuracy and time are filled in.
        target: of the skip scores.

    Raises:
        ModelError: the model has no layer attention, or was compiled.
        ProbeError: a site did not fire as expected, or weights are NaN.
        DataError: no batches, or labels outside the model's classes.
    """
    with AttentionProbe(model) as probe:
        result = evaluate(model, batches, device=device, progress=progress)
    return from_probe(
        probe,
        provenance=provenance.model_copy(
            update={
                "samples": int(result["samples"]),
                "accuracy": result["accuracy"],
                "loss": result["loss"],
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

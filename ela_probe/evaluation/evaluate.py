"""How good a classifier is on a split: accuracy and loss, in one pass.

Predicting the next token is classifying every position of a sequence.
"""

import math
import time
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from ela_probe.errors import DataError
from ela_probe.forward import call, eval_mode, inputs_and_labels, logits_of, mapped, sample_count
from ela_probe.system.memory_format import to_memory_format
from ela_probe.system.processes import all_gather, is_first, process_count, raise_together, rank
from ela_probe.system.progress import track


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    device: torch.device | None = None,
    *,
    labelled: bool = True,
    measured: bool = True,
    progress: bool = True,
) -> dict[str, float]:
    """Measure `model` in eval mode over all batches of `loader`.

    The train/eval mode of every submodule is put back afterwards, also when the model raises.
    Where torch.distributed is up, every process calls it with batches of its own, and all get the
    figures of all samples.

    Args:
        model: maps inputs (N, ...) to logits (*L, K) where labels have shape L: images to (N, K),
            tokens to (N, tokens, K); moved to `device`.
        loader: batches of inputs (N, ...) and labels, (N,) or a label for every token (N, tokens);
            see `inputs_and_labels`.
        labelled: whether a batch that is a pair is inputs and labels.
        measured: False allows batches without labels and outputs without logits; where there
            are any, accuracy and loss are NaN.
        device: where to compute; where the model's first parameter lies when None.
        progress: show a bar on stderr, if that is a terminal.

    Returns:
        `accuracy` (fraction of 1) and `loss` (mean cross entropy, nats), both over all labels,
        `samples`, `seconds`; for sequences also `perplexity`, exp(loss).

    Raises:
        DataError: the loader holds no batch, a label is none of the model's K classes, or (if
            `measured`) there are no labels or logits.
    """
    if device is None:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
    loss = MeanMetric().to(device)
    if device.type != "mps":
        loss.set_dtype(torch.float64)
    accuracy: MulticlassAccuracy | None = None
    samples, scored, sequences = 0, True, False
    start = time.perf_counter()
    with eval_mode(model.to(device)):
        with raise_together():
            for batch in track(loader, "evaluating", progress=progress and is_first()):
                inputs, labels = inputs_and_labels(batch, labelled=labelled)
                samples += sample_count(inputs)
                inputs = mapped(
                    inputs, lambda t: to_memory_format(t.to(device, non_blocking=True), model)
                )
                output = call(model, inputs)
                logits = logits_of(output)
                if logits is None or not _are_classes(labels, logits):
                    if measured:
                        raise DataError(_unmeasured(labels, output))
                    scored = False
                    continue
                logits = logits.float()
                outside = int(labels.max())
                sequences = labels.dim() > 1
                labels = labels.to(device, non_blocking=True).flatten()
                logits = logits.flatten(0, -2)
                if outside >= logits.shape[1]:
                    raise DataError(
                        f"the data has label {outside}, the model only {logits.shape[1]} classes "
                        "(0 and up): evaluate it on the data that it was trained for"
                    )
                if accuracy is None:
                    accuracy = MulticlassAccuracy(
                        logits.shape[1], average="micro", validate_args=False
                    ).to(device)
                accuracy.update(logits, labels)
                loss.update(F.cross_entropy(logits, labels), weight=len(labels))
            if not samples:
                raise DataError(_nothing())
        samples, scored = sum(all_gather(samples)), all(all_gather(scored))
        mean = float(loss.compute()) if scored else math.nan
        return {
            "accuracy": float(accuracy.compute()) if accuracy is not None and scored else math.nan,
            "loss": mean,
            **({"perplexity": perplexity(mean)} if sequences and scored else {}),
            "samples": samples,
            "seconds": time.perf_counter() - start,
        }


def _nothing() -> str:
    if process_count() == 1:
        return "there is nothing to evaluate: the split is empty"
    return (
        f"there is no batch for process {rank() + 1} of {process_count()}: take fewer processes, "
        "smaller batches or more samples"
    )


def _are_classes(labels: Any, logits: Tensor) -> bool:
    """Whether these are class labels of logits with one more axis: (N,) and (N, K), say."""
    return (
        isinstance(labels, Tensor)
        and not labels.is_floating_point()
        and logits.ndim > 1
        and labels.shape == logits.shape[:-1]
    )


def _unmeasured(labels: Any, output: Any) -> str:
    def shown(value: Any) -> str:
        return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__

    return (
        "accuracy needs labels (N,) and logits (N, K), or one label for every token, the logits "
        f"alone or as `.logits` of the output; {shown(labels)} and {shown(output)} came; such a "
        "model can be analysed, not compared"
    )


def perplexity(loss: float) -> float:
    """exp of the mean cross entropy (nats a token): 1 for certainty, K for a uniform guess."""
    return math.exp(min(loss, 700.0))  # beyond lies infinity

"""How good a classifier is on a split: accuracy and loss, in one pass.

Predicting the next token is classifying every position of a sequence.
"""

import math
import time
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from ela_probe.errors import DataError
from ela_probe.progress import track


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    device: torch.device | None = None,
    *,
    progress: bool = True,
) -> dict[str, float]:
    """Measure `model` in eval mode over all batches of `loader`.

    The train/eval mode of every submodule is put back afterwards, also when the model raises.

    Args:
        model: maps inputs (N, ...) to logits (*L, K) where labels have shape L: images to (N, K),
            tokens to (N, tokens, K); moved to `device`.
        loader: batches of inputs (N, ...) and labels, (N,) or a label for every token (N, tokens).
        device: where to compute; where the model's first parameter lies when None.
        progress: show a bar on stderr, if that is a terminal.

    Returns:
        `accuracy` (fraction of 1) and `loss` (mean cross entropy, nats), both over all labels,
        `samples`, `seconds`; for sequences also `perplexity`, exp(loss).

    Raises:
        DataError: the loader holds no batch, or a label is none of the model's K classes.
    """
    if device is None:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
    modes = [(module, module.training) for module in model.modules()]
    loss = MeanMetric().to(device)
    accuracy: MulticlassAccuracy | None = None
    samples = 0
    sequences = False
    start = time.perf_counter()
    try:
        model.to(device).eval()
        for images, labels in track(loader, "evaluating", progress=progress):
            outside = int(labels.max())
            samples += len(labels)
            sequences = labels.dim() > 1
            labels = labels.to(device, non_blocking=True).flatten()
            logits = model(images.to(device, non_blocking=True)).float().flatten(0, -2)
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
        if accuracy is None:
            raise DataError("there is nothing to evaluate: the split is empty")
        mean = float(loss.compute())
        return {
            "accuracy": float(accuracy.compute()),
            "loss": mean,
            **({"perplexity": perplexity(mean)} if sequences else {}),
            "samples": samples,
            "seconds": time.perf_counter() - start,
        }
    finally:
        for module, training in modes:
            module.training = training


def perplexity(loss: float) -> float:
    """exp of the mean cross entropy (nats a token): 1 for certainty, K for a uniform guess."""
    return math.exp(min(loss, 700.0))  # beyond lies infinity

"""How good a model is on a split: its loss, and its accuracy or average precision, in one pass."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ela_probe.errors import DataError
from ela_probe.evaluation.labels import IGNORED
from ela_probe.evaluation.objectives import objective_of
from ela_probe.forward import call, eval_mode, inputs_and_labels, sample_count
from ela_probe.spreading import input_device, placed
from ela_probe.system.memory_format import to_memory_format
from ela_probe.system.nested_tensors import fields_of, mapped
from ela_probe.system.processes import all_gather, is_first, process_count, raise_together, rank
from ela_probe.system.progress import track

LABEL_FIELDS = ("label", "labels", "target", "targets", "y")  # what people call them
NO_LABELS = "accuracy and loss were not measured: the batches have no labels"


class LossReader(Protocol):
    """What differentiates the losses of an evaluation."""

    def wants(self) -> bool:
        """Whether the next forward pass is to be differentiated; asked once before each pass."""

    def backward(self, losses: Tensor, counted: Tensor) -> None:
        """Differentiate the mean loss of each sample, [samples] in nats.

        counted: [samples], whether a sample has any label that counts.
        """


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    device: torch.device | None = None,
    *,
    labelled: bool = True,
    inputs: str | Sequence[str] | None = None,
    labels: str | None = None,
    measured: bool = True,
    reader: LossReader | None = None,
    before_pass: Callable[[Any, int], None] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure `model` in eval mode over all batches of `loader`.

    The train/eval mode of every submodule is put back afterwards, also when the model raises.
    Where torch.distributed is initialised, every process calls it with batches of its own, and all
    get the figures of all samples.

    Args:
        model: maps inputs (N, ...) to logits (*L, K) where labels have shape L: images to (N, K),
            tokens to (N, tokens, K); or a `Detector`; moved to `device`, unless it is spread over
            several.
        loader: batches of inputs (N, ...) and labels, (N,) or a label for every token (N, tokens);
            see `inputs_and_labels`, and `class_labels` for their types.
        device: where to compute; where the model's first parameter lies when None.
        labelled: whether a batch that is a pair is inputs and labels.
        inputs, labels: the fields of a batch that is a dict, a data class or a named tuple; see
            `inputs_and_labels`.
        measured: False allows batches without labels and outputs without logits; where there
            are any, accuracy and loss are NaN.
        reader: gets the losses of the samples of the passes that it wants, with their graph.
        before_pass: called before each pass with the batch's labels and its number of samples.
        progress: show a bar on stderr, if that is a terminal.

    Returns:
        `accuracy` (fraction of 1) and `loss` (mean cross entropy, nats), both over all labels but
        those of IGNORED, `samples`, `seconds`; for sequences also `perplexity`, exp(loss); for
        detectors `precision` (`Precisions`) and the mean loss of an image, without accuracy; where
        accuracy and loss are NaN for want of labels also `unmeasured`, the reason in words.

    Raises:
        DataError: the loader holds no batch, a label is none of the model's K classes, a field is
            not there, or (if `measured`) there are no labels or logits.
    """
    if device is None:
        device = input_device(model)
    objective = objective_of(model)
    figures = objective.figures(device)
    samples = 0
    reason: str | None = None
    start = time.perf_counter()
    with eval_mode(placed(model, device)):
        with raise_together():
            for batch in track(loader, "evaluating", progress=progress and is_first()):
                given, targets = inputs_and_labels(
                    batch, labelled=labelled, inputs=inputs, labels=labels
                )
                count = sample_count(given)
                samples += count
                if before_pass is not None:
                    before_pass(targets, count)
                given = mapped(
                    given, lambda t: to_memory_format(t.to(device, non_blocking=True), model)
                )
                with torch.set_grad_enabled(reader is not None and reader.wants()):
                    output = call(model, objective.arguments(given, targets))
                    matched = objective.matched(output, targets)
                if matched is None:
                    reason = _unmeasured(batch, targets, output)
                    if measured:
                        raise DataError(reason)
                    continue
                if reader is not None:
                    losses, counts = objective.sample_losses(matched)
                    if losses.requires_grad:
                        reader.backward(losses, counts)
                figures.add(matched)
            if not samples:
                raise DataError(_nothing())
        samples, counted = sum(all_gather(samples)), figures.counted()
        reason = next((other for other in all_gather(reason) if other is not None), None)
        if reason is None and not counted:
            reason = f"accuracy and loss were not measured: all labels are {IGNORED}"
            if measured:
                raise DataError(f"{reason}; expected some of 0 and up")
        found: dict[str, Any] = {"accuracy": math.nan, "loss": math.nan}
        if reason is None:
            found = figures.compute(counted)
        else:
            found["unmeasured"] = reason
        return {**found, "samples": samples, "seconds": time.perf_counter() - start}


def _nothing() -> str:
    if process_count() == 1:
        return "there is nothing to evaluate: the split is empty"
    return (
        f"there is no batch for process {rank() + 1} of {process_count()}: take fewer processes, "
        "smaller batches or more samples"
    )


def _unmeasured(batch: Any, labels: Any, output: Any) -> str:
    """Why a batch has no accuracy, and what to do about it."""
    fields = fields_of(batch) or {}
    likely = [name for name in LABEL_FIELDS if name in fields]
    if labels is None and likely:
        return (
            f"accuracy and loss were not measured: the batch has the fields {', '.join(fields)}, "
            f"and none was named as the labels; name it with labels={likely[0]!r} "
            f"(--batch-keys INPUTS:{likely[0]})"
        )
    if labels is None:
        return NO_LABELS
    return (
        "accuracy and loss were not measured: expected integer labels (N,) and logits (N, K), or "
        "one label per token, the logits alone or as `.logits` of the output; got as labels "
        f"{_described(labels)}, as output {_described(output)}"
    )


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    fields = fields_of(value)
    inside = f" with the fields {', '.join(fields)}" if fields else ""
    return f"a {type(value).__name__}{inside}"

"""Objectives: what the output of a model is held against, by the kind of model.

An objective says how a model is called so that its losses can be had, what the loss of each sample
is, what training minimises, and how the figures of all samples are collected.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import SumMetric
from torchmetrics.classification import MulticlassAccuracy

from ela_probe.evaluation.detections import DetectionPrecision
from ela_probe.evaluation.labels import IGNORED, class_labels
from ela_probe.forward import call, logits_of, required_logits
from ela_probe.models.detection import Detected, Detector, MaskRCNN
from ela_probe.system.processes import all_gather


class Matched(NamedTuple):
    """An output and the targets that it is held against: logits and classes, or `Detected`."""

    output: Any
    targets: Any


class Figures(Protocol):
    """Collects the figures of many samples."""

    def add(self, matched: Matched) -> None:
        """Add those of a batch."""

    def counted(self) -> int:
        """How many predictions have counted so far, in all processes."""

    def compute(self, counted: int) -> dict[str, Any]:
        """The figures of all samples of all processes; `loss` is one of them, in nats."""


class Objective(Protocol):
    """How the outputs of a kind of model are held against their targets."""

    def arguments(self, given: Any, targets: Any) -> Any:
        """What the model is called with, so that `matched` takes its output."""

    def matched(self, output: Any, targets: Any) -> Matched | None:
        """The output and its targets; None if they can't be compared. Raises DataError."""

    def sample_losses(self, matched: Matched) -> tuple[Tensor, Tensor]:
        """[samples] twice: the loss in nats, with its graph, and how many predictions it means."""

    def training_loss(self, model: nn.Module, given: Any, targets: Any) -> Tensor:
        """What training minimises on a batch, in nats."""

    def figures(self, device: torch.device) -> Figures:
        """A new collection of figures."""


def objective_of(model: nn.Module) -> Objective:
    """The objective of an unwrapped model."""
    if isinstance(model, Detector):
        return Detection(masks=isinstance(model, MaskRCNN))
    return Classification()


class Classification:
    """Cross entropy of classes; a language model classifies each position of a sequence."""

    def arguments(self, given: Any, targets: Any) -> Any:
        """The inputs alone."""
        return given

    def matched(self, output: Any, targets: Any) -> Matched | None:
        """Logits (*L, K) and classes (*L), int64."""
        logits = logits_of(output)
        classes = None if logits is None else class_labels(targets, logits)
        if logits is None or classes is None:
            return None
        return Matched(logits, classes.to(logits.device, non_blocking=True))

    def sample_losses(self, matched: Matched) -> tuple[Tensor, Tensor]:
        """The mean cross entropy of each sample over its labels, and how many of them count."""
        return sample_losses(*matched)

    def training_loss(self, model: nn.Module, given: Any, targets: Any) -> Tensor:
        """The mean cross entropy over all labels."""
        logits = required_logits(call(model, given))
        return F.cross_entropy(logits.flatten(0, -2), targets.flatten())

    def figures(self, device: torch.device) -> "ClassificationFigures":
        """Accuracy, loss and, for sequences, perplexity."""
        return ClassificationFigures(device)


def sample_losses(logits: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """The mean cross entropy of each sample over its labels, and how many of them count.

    Args:
        logits: [samples, ..., K]. classes: [samples, ...]; those of IGNORED don't count.

    Returns: two tensors [samples]; the losses are in nats and can be differentiated.
    """
    with torch.enable_grad():
        precise = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, -2)
        losses = F.cross_entropy(precise, classes.flatten(), ignore_index=IGNORED, reduction="none")
        counts = (classes != IGNORED).reshape(len(classes), -1).sum(dim=1)
        return losses.reshape(len(classes), -1).sum(dim=1) / counts.clamp_min(1), counts


class ClassificationFigures:
    """Sums over the labels that count."""

    def __init__(self, device: torch.device) -> None:
        self._loss, self._device = sum_on(device), device
        self._accuracy: MulticlassAccuracy | None = None
        self._counted, self._sequences = 0, False

    def add(self, matched: Matched) -> None:
        """Add the logits and classes of a batch."""
        logits, classes = matched.output.detach(), matched.targets
        counts = int((classes != IGNORED).sum())
        self._sequences = classes.dim() > 1
        classes = classes.flatten()
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, -2)
        if self._accuracy is None:
            self._accuracy = MulticlassAccuracy(
                logits.shape[1], average="micro", ignore_index=IGNORED, validate_args=False
            ).to(self._device)
        if counts:
            self._accuracy.update(logits, classes)
            mean = F.cross_entropy(logits, classes, ignore_index=IGNORED)
            self._loss.update(mean * counts)
        self._counted += counts

    def counted(self) -> int:
        """How many labels have counted, in all processes."""
        return sum(all_gather(self._counted))

    def compute(self, counted: int) -> dict[str, Any]:
        """Accuracy (fraction of 1), loss and, for sequences, perplexity."""
        assert self._accuracy is not None
        found: dict[str, Any] = {
            "accuracy": float(self._accuracy.compute()),
            "loss": float(self._loss.compute()) / counted,
        }
        if self._sequences:
            found["perplexity"] = perplexity(found["loss"])
        return found


class Detection:
    """The sum of a detector's losses: of proposals, boxes and, with Mask R-CNN, masks."""

    def __init__(self, *, masks: bool) -> None:
        self.masks = masks

    def arguments(self, given: Mapping[str, Any], targets: Sequence[Mapping[str, Tensor]]) -> Any:
        """The images with their targets, where there are any."""
        if targets is None or not isinstance(given, Mapping):
            return given
        device = given["images"].device
        moved = [{n: value.to(device) for n, value in target.items()} for target in targets]
        return {**given, "targets": moved}

    def matched(self, output: Any, targets: Any) -> Matched | None:
        """Detections and losses, with the targets."""
        return Matched(output, targets) if isinstance(output, Detected) else None

    def sample_losses(self, matched: Matched) -> tuple[Tensor, Tensor]:
        """The loss of each image, and how many predictions that is of (`Detector.predictions`)."""
        return matched.output.losses, matched.output.predictions

    def training_loss(self, model: nn.Module, given: Any, targets: Any) -> Tensor:
        """The sum of the losses of a batch."""
        losses = call(model, self.arguments(given, targets))
        return torch.stack(list(losses.values())).sum()

    def figures(self, device: torch.device) -> "DetectionFigures":
        """Loss and average precision."""
        return DetectionFigures(device, masks=self.masks)


class DetectionFigures:
    """Sums over images, and their detections."""

    def __init__(self, device: torch.device, *, masks: bool) -> None:
        self._loss = sum_on(device)
        self._precision = DetectionPrecision(masks=masks)
        self._images = 0

    def add(self, matched: Matched) -> None:
        """Add the detections and losses of a batch."""
        self._loss.update(matched.output.losses.detach().sum())
        self._images += len(matched.output.losses)
        self._precision.update(matched.output.detections, matched.targets)

    def counted(self) -> int:
        """How many images there were, in all processes."""
        return sum(all_gather(self._images))

    def compute(self, counted: int) -> dict[str, Any]:
        """The mean loss of an image, and `precision`, of the type `Precisions`."""
        return {
            "accuracy": math.nan,
            "loss": float(self._loss.compute()) / counted,
            "precision": self._precision.compute(),
        }


def sum_on(device: torch.device) -> SumMetric:
    """A sum in float64 where the device has that type."""
    # Not a MeanMetric: that one ignores its weights where NaN is to stay and be reported.
    total = SumMetric(nan_strategy="disable").to(device)
    if device.type != "mps":
        total.set_dtype(torch.float64)
    return total


def perplexity(loss: float) -> float:
    """exp of the mean cross entropy (nats a token): 1 for certainty, K for a uniform guess."""
    return math.exp(min(loss, 700.0))  # beyond lies infinity

"""Ablation: what each action at each site really does to the loss, to hold estimates against."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ela_probe.adapters.handover import Alternatives, Handover
from ela_probe.analysis.handover_hooks import HandoverHooks, with_modules_of
from ela_probe.errors import DataError, PlanError
from ela_probe.evaluation.objectives import Matched, Objective, objective_of
from ela_probe.forward import eval_mode, inputs_and_labels
from ela_probe.models.detection import Detected
from ela_probe.models.stand_in import affine
from ela_probe.pruning.kept_detections import (
    TARGETS,
    UNCHANGED,
    Arrays,
    KeptDetections,
    joined,
)
from ela_probe.pruning.replay import RecordedPass
from ela_probe.sites import Action, Stage
from ela_probe.system.json_documents import JsonDocument
from ela_probe.system.memory_format import to_memory_format
from ela_probe.system.nested_tensors import mapped
from ela_probe.system.progress import track
from ela_probe.system.validation import Finite, Name, Strict


class Change(Strict):
    """How the loss and the accuracy of samples change under one action at one site.

    Sums over samples: of the change of the loss in nats, of its square, and of the change of the
    share of right predictions.
    ap: of a detector, once all batches are done: the average precision of its boxes under the
    action, a fraction of 1. None: not measured, or there is no object.
    """

    site: Name
    action: Action
    loss: Finite = 0.0
    square: Finite = 0.0
    accuracy: Finite = 0.0
    ap: Finite | None = None

    def mean(self, samples: int) -> float:
        """The mean change of the loss, in nats."""
        return self.loss / samples

    def error(self, samples: int) -> float:
        """Its standard error; NaN for one sample."""
        if samples < 2:
            return math.nan
        mean = self.loss / samples
        return math.sqrt(max(0.0, self.square / samples - mean * mean) / (samples - 1))


class PlanResult(Strict):
    """A whole plan, measured: its loss in nats and its accuracy, and both after fine-tuning.

    ap, tuned_ap: the average precision of a detector's boxes, which has no accuracy.
    time_ratio: its predicted step time relative to the unpruned one; None without costs.
    """

    name: Name
    planner: str
    action: str
    seed: int | None = None
    skipped: int
    time_ratio: Finite | None = None
    predicted: Finite | None = None
    loss: Finite
    accuracy: Finite | None
    ap: Finite | None = None
    tuned_loss: Finite | None = None
    tuned_accuracy: Finite | None = None
    tuned_ap: Finite | None = None

    @property
    def quality(self) -> float | None:
        """The accuracy, or of a detector the average precision."""
        return self.ap if self.accuracy is None else self.accuracy

    @property
    def tuned_quality(self) -> float | None:
        """The same after fine-tuning."""
        return self.tuned_ap if self.accuracy is None else self.tuned_accuracy


class Ablation(JsonDocument):
    """The measured changes of a model's sites; saved after every batch, so that it can go on.

    checkpoint_sha256, data, split, limit, batch_size: what defines the run.
    batches, samples: done so far. loss, accuracy: sums over samples of the unchanged model; the
    accuracy of a detector is 0. ap: the average precision of an unchanged detector's boxes.
    detections: the SHA-256 of the files of `KeptDetections`, until all batches are done.
    complete: whether all batches are done. plans: those measured so far.
    """

    NAMED = "the ablation"
    EXPECTED = "a file that `ela-probe ablate` wrote"
    INVALID = "holds no valid ablation"
    ERROR = PlanError

    schema_version: Literal[1] = 1
    checkpoint_sha256: str | None = None
    data: str | None = None
    split: str | None = None
    limit: int | None = None
    batch_size: int | None = None
    batches: int = Field(0, ge=0)
    samples: int = Field(0, ge=0)
    loss: Finite = 0.0
    accuracy: Finite = 0.0
    ap: Finite | None = None
    detections: tuple[str, ...] = Field(())
    complete: bool = False
    changes: tuple[Change, ...] = Field(())
    plans: tuple[PlanResult, ...] = Field(())

    @model_validator(mode="after")
    def _changes_of_samples(self) -> "Ablation":
        if self.changes and not self.samples:
            raise ValueError("it has changes of the loss, but of 0 samples; expected 1 or more")
        return self

    def finished(self, kept: KeptDetections | None, *, progress: bool = False) -> "Ablation":
        """The same after the last batch; of a detector with the average precisions.

        kept: the detections of all batches. An ablation whose first batches are from a version that
        kept none has no average precision.
        """
        known: dict[str, Any] = {"complete": True, "detections": ()}
        if kept is not None and self.batches and len(self.detections) == self.batches:
            known["ap"] = kept.precision(UNCHANGED, batches=self.batches)
            steps = track(
                self.changes, "average precision", total=len(self.changes), progress=progress
            )
            known["changes"] = tuple(
                change.model_copy(update={"ap": kept.precision(case, batches=self.batches)})
                for change in steps
                for case in [_case(change.site, change.action)]
            )
        return self.model_copy(update=known)

    def check_sites(self, stages: Sequence[Stage]) -> None:
        """Raise PlanError unless every measured site is one of these."""
        names = {site.name for stage in stages for site in stage.sites}
        if unknown := [change.site for change in self.changes if change.site not in names]:
            raise PlanError(
                f"the ablation is of another model: it measured {unknown[0]}, which the analysis "
                "does not have; expected the ablation of the checkpoint that was analysed"
            )


def ablate_sites(
    model: nn.Module,
    handovers: Mapping[str, Handover],
    stand_ins: Mapping[str, Tensor],
    batches: Iterable[Any],
    start: Ablation,
    *,
    device: torch.device,
    kept: KeptDetections | None = None,
) -> Iterable[Ablation]:
    """Measure every action at every site alone; yields the sums after each batch.

    For each action the model is run from the site on; what comes before is reused from one recorded
    pass, so that T sites cost about T / 2 passes for each action.

    Args:
        model: unwrapped; it is moved to `device` and run in eval mode.
        handovers: by site name. stand_ins: by site name the coefficients of `affine`, which is
            left out at sites without any.
        batches: of inputs and labels. The first `start.batches` of them are passed over.
        start: the sums so far; without any changes for a new run.
        kept: where a detector's boxes are written, for `Ablation.finished`.

    Raises:
        DataError: batches without labels, or a model without logits.
    """
    model.to(device)
    sums = start
    for number, batch in enumerate(batches):
        if number < start.batches:
            continue
        inputs, labels = inputs_and_labels(batch)
        inputs = mapped(inputs, lambda t: to_memory_format(t.to(device), model))
        with eval_mode(model), torch.no_grad(), with_modules_of(model, handovers):
            added, found = _added(model, handovers, stand_ins, inputs, labels, sums)
        if kept is not None and len(sums.detections) == sums.batches:
            cases = {**found, TARGETS: joined(labels)}
            added["detections"] = (*sums.detections, kept.write(number, cases))
        sums = sums.model_copy(update=added)
        yield sums


def _added(
    model: nn.Module,
    handovers: Mapping[str, Handover],
    stand_ins: Mapping[str, Tensor],
    inputs: Any,
    labels: Any,
    sums: Ablation,
) -> tuple[dict[str, Any], dict[str, Arrays]]:
    """The fields of the sums after one more batch, and what a detector found in it, by case."""
    read: dict[str, Sequence[Tensor]] = {}

    def remember(site: str, tensors: Sequence[Tensor], y: Tensor) -> None:
        read[site] = tensors

    objective = objective_of(model)
    inputs = objective.arguments(inputs, labels)
    with HandoverHooks(model, handovers, remember):
        recorded = RecordedPass(model, inputs, [h.module for h in handovers.values()])
    matched = objective.matched(recorded.output, labels)
    if matched is None:
        raise DataError(
            "ablation needs batches with integer labels, and a model that returns logits; "
            "name data with --data"
        )
    losses, right, counted = _results(objective, matched)
    before = {(c.site, c.action): c for c in sums.changes}
    changes, found = [], _found(UNCHANGED, matched)
    for site, handover in handovers.items():
        for action in handover.actions:
            if action == "affine" and site not in stand_ins:
                continue
            given = handover.alternatives(*read[site])
            new = handed_on(given, handover, action, stand_ins.get(site))
            after = recorded.run_after(handover.module, new, handover.with_output)
            changed = objective.matched(after, labels)
            assert changed is not None
            found |= _found(_case(site, action), changed)
            new_losses, new_right, _ = _results(objective, changed)
            difference = (new_losses - losses)[counted]
            old = before.get((site, action), Change(site=site, action=action))
            changes.append(
                old.model_copy(
                    update={
                        "loss": old.loss + float(difference.sum()),
                        "square": old.square + float(difference.square().sum()),
                        "accuracy": old.accuracy + float((new_right - right)[counted].sum()),
                    }
                )
            )
    added = {
        "batches": sums.batches + 1,
        "samples": sums.samples + int(counted.sum()),
        "loss": sums.loss + float(losses[counted].sum()),
        "accuracy": sums.accuracy + float(right[counted].sum()),
        "changes": tuple(changes),
    }
    return added, found


def _case(site: str, action: Action) -> str:
    return f"{action} {site}"


def _found(case: str, matched: Matched) -> dict[str, Arrays]:
    """The boxes of a case; nothing of a classifier."""
    is_detected = isinstance(matched.output, Detected)
    return {case: joined(matched.output.detections)} if is_detected else {}


def _results(objective: Objective, matched: Matched) -> tuple[Tensor, Tensor, Tensor]:
    """Of each sample the loss, the share of right predictions, and whether it counts; float64.

    The share is 0 where the output is no logits.
    """
    if not isinstance(matched.output, Tensor):
        losses, counts = (found.cpu() for found in objective.sample_losses(matched))
        return losses.double(), torch.zeros(len(losses)).double(), counts > 0
    logits, classes = matched.output, matched.targets
    losses, counts = objective.sample_losses(Matched(logits.cpu().double(), classes.cpu()))
    known = (classes >= 0).reshape(len(classes), -1).cpu()
    hits = (logits.argmax(dim=-1) == classes).reshape(len(classes), -1).cpu() & known
    return losses, hits.sum(dim=1) / known.sum(dim=1).clamp_min(1).double(), counts > 0


def handed_on(
    given: Alternatives, handover: Handover, action: Action, stand_in: Tensor | None
) -> Tensor:
    """What a site hands on under an action. Raises PlanError where that is unknown."""
    if action in ("skip", "drop"):
        return given.skipped
    if action == "recur" and given.recurred is not None:
        return given.recurred
    if action == "affine" and stand_in is not None:
        a = stand_in.to(given.output)
        count = len(given.terms)
        shift = a[count] if handover.has_shift else None
        return affine(given.terms, a[:count], shift, channel_axis=handover.channel_axis)
    raise PlanError(f"what {handover.module} hands on under {action!r} is unknown")

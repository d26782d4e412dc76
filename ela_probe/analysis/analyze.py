"""`analyze`: run a model over data inside a probe, and return the analysis."""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DistributedSampler

from ela_probe.analysis.damage_probe import DamageProbe, handovers_of
from ela_probe.analysis.ebqm import Target
from ela_probe.analysis.observed_handovers import observed_handovers
from ela_probe.analysis.probe import AttentionProbe
from ela_probe.analysis.result import Analysis, Provenance
from ela_probe.analysis.sample_views import Positions
from ela_probe.analysis.stand_ins import fit_stand_ins
from ela_probe.discovery.discover import OBSERVED, Discovery, discover, discover_by_adapter
from ela_probe.errors import DataError, OptionError
from ela_probe.evaluation.evaluate import NO_LABELS, evaluate
from ela_probe.forward import check_has_values, inputs_and_labels, unwrap
from ela_probe.spreading import NO_DAMAGE, is_spread
from ela_probe.system.numbers import finite_or_none
from ela_probe.system.processes import all_gather, process_count, raise_together


def analyze(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    labelled: bool = True,
    inputs: str | Sequence[str] | None = None,
    labels: str | None = None,
    discovery: Discovery | None = None,
    device: torch.device | None = None,
    provenance: Provenance = Provenance(),
    target: Target = Target(),
    damage: bool = True,
    fit_batches: Iterable[Any] | None = None,
    positions: Iterable[Tensor] | None = None,
    every: int = 1,
    max_batches: int | None = None,
    max_tokens: int | None = None,
    progress: bool = True,
) -> Analysis:
    """Measure the redundancy of a model's layer attention in eval mode, in one pass.

    Accuracy, loss and damage are measured too if every batch has labels (N,) and the model returns
    logits (N, K), alone or as `logits` of its output. Otherwise they are None, and a note says why.
    Damage also needs an adapter that knows where the sites hand on (`DamageAdapter`), or a model
    that is only observed whose retrieving modules can be left out (`observed_handovers`); it takes
    one backward pass a batch, and before that one forward pass over a few batches to fit stand-ins.

    Under torch.distributed every process calls it with its own batches, and all of them return the
    analysis of all batches, with exactly the sums that one process would have. A sampler that
    repeats samples to give every process the same number is refused.

    Args:
        model: any model; the modes of its modules are restored afterwards.
        batches: e.g. a DataLoader, without augmentation. A pair is inputs and labels; the model is
            called with anything else (a tensor, a dict, a longer tuple) as it is.
        labelled: False if a pair is two arguments of the model.
        inputs, labels: the fields of a batch that is a dict, a data class or a named tuple: what
            the model is called with, and its labels (see `inputs_and_labels`).
        discovery: the result of `discover` or `DeclaredAdapter.discover`, if it was called already.
        device: where to compute; the model's device when None.
        provenance: what is known of model and data; samples, accuracy and time are filled in.
        target: of the skip scores.
        damage: whether to measure what each action at each site would add to the loss.
        fit_batches: what stand-ins are fitted to, a fair sample of the data. When None, the first
            `FIT_SAMPLES` samples of `batches`, if these can be iterated twice; else no stand-ins.
        positions: [samples] of each batch, where its samples are in the data set, to name the most
            unusual ones. When None, they are counted in the order of `batches`; several processes
            then name none.
        every, max_batches, max_tokens: record less of a large model (see `AttentionProbe`);
            no batch is read after the last recorded one. The provenance says so.

    Raises:
        OptionError: `every`, `max_batches` or `max_tokens` below 1, or damage of a model that is
            spread over devices or disk.
        ModelError: the model has no layer attention, was scripted, or is on the meta device.
        ProbeError: a site did not fire as expected, or weights are NaN.
        DataError: no batches, batches that the model's forward doesn't take, labels outside the
            model's classes, fields that are not there, or samples that are repeated.
    """
    check_repeats(batches)
    check_has_values(model)
    if damage and is_spread(unwrap(model)):
        raise OptionError(NO_DAMAGE)
    fields: dict[str, Any] = {"labelled": labelled, "inputs": inputs, "labels": labels}
    discovery = discovery or discover_by_adapter(model)
    observed = discovery is None or discovery.adapter is OBSERVED
    example = targets = None
    if observed:
        batches, first = _peeked(batches)
        example, targets = inputs_and_labels(first, **fields)
    discovery = discovery or discover(model, example)
    probe = AttentionProbe(
        model,
        discovery=discovery,
        every=every,
        max_batches=max_batches,
        max_tokens=max_tokens,
        by_sample=True,
    )
    places = Positions(positions)
    if positions is None and process_count() > 1:
        places = Positions([])

    def tell(targets: Any, samples: int) -> None:
        probe.expect(samples, labels=targets, positions=places.of_next(samples))

    reader: DamageProbe | None = None
    handovers, missing = handovers_of(model, discovery), ""
    if damage and observed:
        handovers, missing = observed_handovers(
            model, discovery.stages, example, labelled=targets is not None
        )
    if damage and handovers:
        if fit_batches is None and iter(batches) is not batches:
            fit_batches = batches
        stand_ins = {}
        if fit_batches is not None:
            stand_ins = fit_stand_ins(
                unwrap(model), handovers, fit_batches, device=device, progress=progress, **fields
            )
        reader = DamageProbe(unwrap(model), handovers, stand_ins, sampling=probe.sampling)
    if probe.sampling.passes is not None:
        batches = islice(batches, probe.sampling.passes)
    with raise_together(), probe, reader or nullcontext():
        result = evaluate(
            model,
            batches,
            device,
            measured=False,
            reader=reader,
            before_pass=tell,
            progress=progress,
            **fields,
        )
    sampled = sampling_of(probe)
    notes = [sampling_note(sampled)] if sampled else []
    if result.get("unmeasured", NO_LABELS) != NO_LABELS:
        notes.append(result["unmeasured"])
    notes += loss_note(result)
    found = {} if reader is None else reader.compute(discovery.stages)
    if damage and not found and result.get("unmeasured") != NO_LABELS:
        notes.append(no_damage_reason(discovery, reader, missing))
    if found and observed:
        notes.append(
            "the model was only observed, so its damage is that of replacing each module that "
            "retrieves by its input"
        )
    analysis = probe.analysis(
        provenance=provenance.model_copy(
            update={
                "samples": int(result["samples"]),
                "accuracy": finite_or_none(result["accuracy"]),
                "loss": finite_or_none(result["loss"]),
                "perplexity": finite_or_none(result.get("perplexity")),
                "precision": result.get("precision"),
                "seconds": result["seconds"],
                "sampling": sampled,
                "notes": (*provenance.notes, *notes),
            }
        ),
        target=target,
    )
    stages = (replace(part, damage=found.get(part.stage.name)) for part in analysis.stages)
    return replace(analysis, stages=tuple(stages))


def no_damage_reason(discovery: Discovery, reader: DamageProbe | None, missing: str) -> str:
    """Why no damage was measured, in a sentence for the provenance.

    missing: what is not known of an observed model; "" for another one.
    """
    if reader is not None:
        reason = reader.missing
    elif missing:
        reason = f"the model was only observed, and {missing}"
    else:
        reason = (
            f"the adapter {discovery.adapter.name} does not say what a site hands on without its "
            "retrieval"
        )
    return f"damage was not measured: {reason}"


def sampling_of(probe: AttentionProbe) -> dict[str, int]:
    """The sampling options and the numbers of batches; empty if everything was recorded."""
    options: dict[str, int] = {
        name: value
        for name, value in vars(probe.sampling).items()
        if value is not None and (name, value) != ("every", 1)
    }
    if not options:
        return {}
    counts = {"batches": probe.seen, "recorded": probe.passes}
    if "max_batches" in options:
        counts["max_batches"] = options["max_batches"]
    return {**options, **{name: sum(all_gather(value)) for name, value in counts.items()}}


def sampling_note(sampled: Mapping[str, int]) -> str:
    """What was recorded, in one line for the provenance."""
    tokens = sampled.get("max_tokens")
    return (
        f"sampled: the divergences were recorded in {sampled['recorded']} of the "
        f"{sampled['batches']} batches that were run"
        + ("" if tokens is None else f", at most {tokens} token positions a sample")
    )


def loss_note(result: Mapping[str, Any]) -> list[str]:
    """A note if the loss was measured, but is NaN or infinite."""
    if math.isnan(result["accuracy"]) or math.isfinite(result["loss"]):
        return []
    return [
        f"the mean loss is {result['loss']}: outputs of the model are NaN or infinite, so its "
        "retrievals may mean nothing"
    ]


def check_repeats(batches: Iterable[Any]) -> None:
    """Raise DataError if a DistributedSampler repeats samples, which would count twice."""
    sampler = getattr(batches, "sampler", None)
    if isinstance(sampler, DistributedSampler) and sampler.total_size > len(sampler.dataset):  # type: ignore[arg-type]
        raise DataError(
            f"the DistributedSampler repeats {sampler.total_size - len(sampler.dataset)} samples, "  # type: ignore[arg-type]
            "which would count twice; use one that repeats none, such as "
            "pytorch_lightning.overrides.distributed.UnrepeatedDistributedSampler"
        )


def _peeked(batches: Iterable[Any]) -> tuple[Iterable[Any], Any]:
    """All the batches, and the first of them (None if there is none)."""
    iterator = iter(batches)
    if iterator is not batches:
        return batches, next(iterator, None)
    first = list(islice(iterator, 1))
    return chain(first, iterator), first[0] if first else None

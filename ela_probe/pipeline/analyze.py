"""Measure the redundancy of a checkpoint, and the damage of changing it."""

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from ela_probe.analysis.analyze import analyze
from ela_probe.analysis.result import Analysis, Provenance
from ela_probe.analysis.stand_ins import FIT_SAMPLES
from ela_probe.checkpoint import Checkpoint
from ela_probe.data.audio import AudioData
from ela_probe.data.batches import Share
from ela_probe.data.example_inputs import ExampleInputs, RandomInputs
from ela_probe.data.opening import Data
from ela_probe.discovery.declared import DeclaredAdapter
from ela_probe.discovery.discover import discover_by_adapter
from ela_probe.discovery.sampling import Sampling
from ela_probe.errors import OptionError
from ela_probe.forward import inputs_and_labels
from ela_probe.pipeline.inputs import (
    Split,
    batch_size_for,
    check_data,
    check_inputs,
    data_for,
)
from ela_probe.system.device import resolve_device
from ela_probe.system.processes import Processes, lost_peer_as_error, process_count, rank
from ela_probe.system.versions import versions


def analyze_checkpoint(
    checkpoint: Checkpoint,
    *,
    data: Data | None = None,
    inputs: RandomInputs | ExampleInputs | None = None,
    sites: DeclaredAdapter | None = None,
    split: Split = "train",
    limit: int | None = None,
    damage: bool = True,
    batch_size: int | None = None,
    num_workers: int | None = None,
    every: int = 1,
    max_batches: int | None = None,
    max_tokens: int | None = None,
    device: str = "auto",
    processes: Processes = Processes(),
    progress: bool = True,
) -> Analysis:
    """Measure the redundancy of a checkpoint's layer attention, in eval mode, unaugmented.

    Several processes read whole batches in turn, and all return the analysis of all.

    Args:
        data: replaces the data that the checkpoint names.
        inputs: what to run on instead of data; accuracy is measured where they name labels.
        sites: where to read, instead of what `discover` finds.
        split: the training samples by default, so that the test split plays no part in planning.
        limit: at most this many samples.
        batch_size: 256 when None, for detectors 16.
        damage: whether to measure what each action at each site would add to the loss, which needs
            labels; it takes two to three times the time.
        every, max_batches, max_tokens: record less of a large model (see `AttentionProbe`).
    """
    Sampling(every, max_batches, max_tokens)  # refuses bad values before data are read
    model, header = checkpoint.model, checkpoint.header
    # Before any data is read: a checkpoint without layer attention is refused at once.
    found = None if sites is not None else discover_by_adapter(model)
    if inputs is not None:
        data = None
        check_inputs(model, inputs)
    else:
        data = data or data_for(checkpoint)
        check_data(model, data)
        size = batch_size_for(data, batch_size, 256)
        everything = data.loader(split, batch_size=size, limit=limit)
        most = min(math.ceil(len(everything) / every), max_batches or len(everything))
        if most < processes.count:
            raise OptionError(
                f"{most} batches to record are too few for {processes.count} processes; take "
                "smaller ones (--batch-size), more of them (--every, --max-batches, --limit), or "
                "fewer processes"
            )
    where = processes.launch(resolve_device(device))
    share = Share(rank(), process_count(), batches_per_turn=every)
    loader: Iterable[Any]
    positions: Iterable[Tensor] | None = None
    fit_batches: Iterable[Any] | None = None
    labelled = data is not None or (inputs is not None and inputs.labelled)
    if data is not None:
        loader = data.loader(
            split, batch_size=size, limit=limit, num_workers=num_workers, share=share
        )
        positions = (batch.positions for batch in loader.sampler)
        # The same batches however many processes there are, up to 8.
        fitted = min(FIT_SAMPLES, len(everything.dataset))  # type: ignore[arg-type]
        fit_batches = data.loader(
            split,
            batch_size=max(1, fitted // max(8, share.count)),
            limit=fitted,
            num_workers=0,
            share=Share(rank(), process_count(), batches_per_turn=1),
        )
    else:
        assert inputs is not None
        loader = inputs if share.count == 1 else share.select(inputs)
    if sites is not None:
        first = next(iter(loader if inputs is None else inputs))
        found = sites.discover(model, inputs_and_labels(first, labelled=labelled)[0])
    provenance = Provenance(
        model=header.model.name,
        model_args=header.model.args,
        checkpoint=checkpoint.path.name,
        checkpoint_sha256=checkpoint.sha256,
        data=str(inputs) if data is None else data.spec.source,
        split=None if data is None else split,
        limit=None if data is None else limit,
        classes=getattr(getattr(data, "spec", None), "classes", ()),
        device=str(where),
        seed=getattr(inputs, "seed", None) if data is None else data.spec.seed,
        notes=tuple(
            note for note in (checkpoint.note, inputs and inputs.note, note_of(data)) if note
        ),
        versions=versions(),
    )
    with lost_peer_as_error():
        return analyze(
            model,
            loader,
            labelled=labelled,
            discovery=found,
            device=where,
            provenance=provenance,
            damage=damage,
            fit_batches=fit_batches,
            positions=positions,
            every=every,
            max_batches=None if max_batches is None else share.turns(max_batches),
            max_tokens=max_tokens,
            progress=progress,
        )


def note_of(data: Data | None) -> str | None:
    """What a reader should know of the samples of a detector, or of sounds."""
    if isinstance(data, AudioData) and data.hears_padding:
        return "the model was given no attention mask, so that it heard the padding of sounds"
    if data is None or data.spec.task != "detection":
        return None
    return (
        f"the detector saw {data.spec.sample}; damage is that of the sum of its losses, on "
        "proposals that stay as they are"
    )

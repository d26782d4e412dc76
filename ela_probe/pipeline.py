"""What the commands do, one function per verb, for use from Python.

A verb takes a `Checkpoint` that `read_checkpoint` returned, so that a file is read once.
"""

import hashlib
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ela_probe.analysis.analyze import analyze
from ela_probe.analysis.damage_probe import handovers_of
from ela_probe.analysis.result import Analysis, Provenance
from ela_probe.analysis.stand_ins import FIT_SAMPLES
from ela_probe.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from ela_probe.data.batches import Share
from ela_probe.data.example_inputs import ExampleInputs, RandomInputs
from ela_probe.data.opening import Data, data_from_spec, open_data
from ela_probe.discovery.declared import DeclaredAdapter
from ela_probe.discovery.discover import discover_by_adapter
from ela_probe.discovery.sampling import Sampling
from ela_probe.errors import CheckpointError, DataError, OptionError, PlanError
from ela_probe.evaluation.evaluate import evaluate
from ela_probe.evaluation.loss_change import LossChange, loss_change
from ela_probe.forward import (
    call,
    eval_mode,
    first_samples,
    inputs_and_labels,
    logits_of,
    moved,
)
from ela_probe.models.registry import ModelSpec, family_of
from ela_probe.pruning.ablation import Ablation, PlanResult, ablate_sites
from ela_probe.pruning.plan import Constraints, Estimate, SkipPlan
from ela_probe.pruning.planners import SkipAction, make_plan
from ela_probe.pruning.prune import prune
from ela_probe.sites import check_same_sites, fingerprint
from ela_probe.system.device import resolve_device
from ela_probe.system.messages import first_line
from ela_probe.system.outputs import refuse_inputs
from ela_probe.system.processes import Processes, is_first, lost_peer_as_error, process_count, rank
from ela_probe.system.progress import track
from ela_probe.system.storage import replacing
from ela_probe.system.versions import versions
from ela_probe.training.config import TrainConfig
from ela_probe.training.ela.callback import ELA
from ela_probe.training.ela.config import ELAConfig
from ela_probe.training.fitting import FitResult, fit
from ela_probe.training.record import BEST, LAST, LOG, RESUME

Split = Literal["train", "val", "test"]
PLAN = "plan.json"


def train(
    spec: ModelSpec,
    data: Data,
    config: TrainConfig,
    *,
    output: Path,
    ela: ELAConfig | None = None,
    device: str = "auto",
    processes: Processes = Processes(),
    resume: bool = False,
    progress: bool = True,
) -> FitResult:
    """Train a model from scratch on `data`; its classes and channels, or tokens, are the data's.

    Writes `best.pt`, `last.pt`, `metrics.csv` and `resume.ckpt` into `output`; with `ela`, which
    skips retrievals in training (`training.ELA`), also `plan.json`.

    Raises:
        ModelError, OptionError, PlanError, DataError, OutputError, CheckpointError (on resume).
    """
    check_task(spec, data.spec.source)
    sizes = data.spec.model_arguments()
    if family_of(spec.name) is not None:
        for name, value in sizes.items():
            if spec.args.get(name, value) != value:
                raise DataError(
                    f"the data {data.spec.source} has {name}={value}, but the model was asked for "
                    f"{name}={spec.args[name]}; leave it out, it follows the data"
                )
        spec = spec.model_copy(update={"args": {**spec.args, **sizes}})
    torch.manual_seed(config.seed)
    model = spec.build()
    callback = None
    if ela is not None:
        provenance = Provenance(
            model=spec.name, model_args=spec.args, data=data.spec.source, versions=versions()
        )
        callback = ELA(ela, path=output / PLAN, provenance=provenance)
    return _fit(
        model, spec, (), data, config, output, device, processes, resume, progress, callback
    )


def finetune(
    checkpoint: Checkpoint,
    config: TrainConfig,
    *,
    output: Path,
    data: Data | None = None,
    device: str = "auto",
    processes: Processes = Processes(),
    resume: bool = False,
    progress: bool = True,
) -> FitResult:
    """Continue to train a checkpoint, pruned or not, and write the best weights to `output`.

    The run itself (log, last weights, state to resume from) lies beside it in
    `<output stem>-run/`. The checkpoint's model is trained in place.

    Args:
        data: replaces the data that the checkpoint names.

    Raises:
        CheckpointError, DataError, OptionError, OutputError: as `data_for` and `train`; also where
            `output`, or a file of the run, is the checkpoint itself.
    """
    folder = output.parent / f"{output.stem}-run"
    refuse_inputs(
        [output, *(folder / name for name in (BEST, LAST, LOG, RESUME))], [checkpoint.path]
    )
    data = data or data_for(checkpoint)
    header = checkpoint.header
    result = _fit(
        checkpoint.model, header.model, header.plans, data, config, folder, device, processes,
        resume, progress, start={"checkpoint (SHA-256)": checkpoint.sha256},
    )  # fmt: skip
    if is_first():
        with replacing(output) as temporary:
            shutil.copyfile(result.best, temporary)
    return result


def analyze_checkpoint(
    checkpoint: Checkpoint,
    *,
    data: Data | None = None,
    inputs: RandomInputs | ExampleInputs | None = None,
    sites: DeclaredAdapter | None = None,
    split: Split = "train",
    limit: int | None = None,
    damage: bool = True,
    batch_size: int = 256,
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
        damage: whether to measure what each action at each site would add to the loss, which needs
            labels; it takes two to four times the time.
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
        everything = data.loader(split, batch_size=batch_size, limit=limit)
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
    fit_batches: Iterable[Any] | None = None
    labelled = data is not None or (inputs is not None and inputs.labelled)
    if data is not None:
        loader = data.loader(
            split, batch_size=batch_size, limit=limit, num_workers=num_workers, share=share
        )
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
        device=str(where),
        seed=getattr(inputs, "seed", None) if data is None else data.spec.seed,
        notes=tuple(note for note in (checkpoint.note, inputs and inputs.note) if note),
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
            every=every,
            max_batches=None if max_batches is None else share.turns(max_batches),
            max_tokens=max_tokens,
            progress=progress,
        )


def prune_checkpoint(checkpoint: Checkpoint, plan: SkipPlan, *, output: Path) -> Checkpoint:
    """Carry out a plan on a checkpoint, write the smaller one to `output` and return it.

    Raises:
        PlanError: the plan was made for other sites.
        OutputError: `output` can't be written, or is the checkpoint itself.
    """
    refuse_inputs([output], [checkpoint.path])
    header = checkpoint.header
    plans = (*header.plans, plan)
    smaller = prune(checkpoint.model, plan)
    save_checkpoint(output, smaller, spec=header.model, plans=plans, data=header.data)
    return Checkpoint(
        path=output,
        model=smaller,
        header=header.model_copy(update={"plans": plans, "metrics": {}}),
        sha256=hashlib.sha256(output.read_bytes()).hexdigest(),
    )


def plan_in_rounds(
    checkpoint: Checkpoint,
    analysis: Analysis,
    *,
    rounds: int,
    skip: float = 0.3,
    action: Literal["skip", "affine"] | None = None,
    constraints: Constraints = Constraints(),
    data: Data | None = None,
    limit: int | None = None,
    device: str = "auto",
    progress: bool = True,
) -> SkipPlan:
    """A plan by damage that is measured again on the partly pruned model after every round.

    Damages do not quite add up; this way the later choices and their stand-ins are made for the
    network that the earlier ones leave. The predicted loss change is the sum over the rounds.

    Args:
        analysis: of the checkpoint, with damage: the first round is planned from it.
        rounds: how many; each adds an equal part of the retrievals to skip.
        skip, action, constraints: as `make_plan` takes them, without `max_run`.
        limit: samples of each new measurement, of the split that `analysis` was measured on.

    Raises:
        PlanError: as `make_plan`. OptionError: `rounds` below 1, or a `max_run`.
    """
    if rounds < 1 or constraints.max_run is not None:
        raise OptionError(
            f"got rounds={rounds} and max_run={constraints.max_run}; expected at least one round, "
            "and no limit of skipped retrievals in a row: rounds can't keep it"
        )
    whole = sum(len(part.stage.sites) for part in analysis.stages)
    count = math.floor(skip * whole + 0.5)
    current, plans = analysis, list[SkipPlan]()
    merged = make_plan(analysis, skip=0.0, planner="damage", constraints=constraints)
    for number in range(1, rounds + 1):
        due = round(count * number / rounds) - len(merged.skipped)
        if due > 0:
            left = sum(len(part.stage.sites) for part in current.stages)
            plans.append(
                make_plan(
                    current, skip=due / left, planner="damage", action=action,
                    constraints=constraints,
                )
            )  # fmt: skip
            merged = merged_plan(analysis, plans, constraints)
        if number < rounds and due > 0:
            smaller = Checkpoint(
                path=checkpoint.path, model=prune(checkpoint.model, merged),
                header=checkpoint.header, sha256=checkpoint.sha256,
            )  # fmt: skip
            split = analysis.provenance.split or "train"
            current = analyze_checkpoint(
                smaller, data=data, split=split, limit=limit, device=device, progress=progress,  # type: ignore[arg-type]
            )  # fmt: skip
    return merged


def merged_plan(
    analysis: Analysis, plans: Sequence[SkipPlan], constraints: Constraints
) -> SkipPlan:
    """One plan for the analysed model from plans that were made one after another."""
    changed = {
        site.name: site
        for plan in plans
        for stage in plan.stages
        for site in stage.sites
        if site.action != "keep"
    }
    whole = make_plan(analysis, skip=0.0, planner="damage", constraints=constraints)
    losses = [loss for plan in plans if (loss := plan.origin.predicted_loss) is not None]
    errors = [loss.se for loss in losses if loss.se is not None]
    predicted = Estimate(
        mean=math.fsum(loss.mean for loss in losses),
        se=math.fsum(errors) if len(errors) == len(losses) else None,
    )
    stages = tuple(
        stage.model_copy(
            update={
                "sites": tuple(
                    site
                    if (new := changed.get(site.name)) is None
                    else new.model_copy(update={"sources": site.sources})
                    for site in stage.sites
                )
            }
        )
        for stage in whole.stages
    )
    return SkipPlan.model_validate(
        whole.model_copy(
            update={
                "stages": stages,
                "charge": predicted.mean,
                "origin": whole.origin.model_copy(
                    update={"rounds": len(plans), "predicted_loss": predicted}
                ),
            }
        ).model_dump()
    )


def check_loss(
    checkpoint: Checkpoint,
    pruned: Checkpoint,
    samples: int,
    *,
    data: Data | None = None,
    device: str = "auto",
    progress: bool = True,
) -> LossChange:
    """How pruning changed the loss, on held-out samples: of the validation split, else the test.

    Args:
        samples: at most so many.
    """
    data = data or data_for(checkpoint)
    check_data(checkpoint.model, data)
    try:
        loader = data.loader("val", limit=samples)
    except DataError:  # it has no validation samples
        loader = data.loader("test", limit=samples)
    return loss_change(
        checkpoint.model, pruned.model, loader, resolve_device(device), progress=progress
    )


def ablate_checkpoint(
    checkpoint: Checkpoint,
    analysis: Analysis,
    *,
    output: Path,
    data: Data | None = None,
    split: Split = "test",
    limit: int | None = None,
    batch_size: int = 256,
    skip: float | None = None,
    random: int = 10,
    tuning: TrainConfig | None = None,
    device: str = "auto",
    resume: bool = False,
    progress: bool = True,
) -> Ablation:
    """Measure what each action at each site does to the loss, then what whole plans do.

    Writes `output/ablation.json` after every batch and every plan, and tuned checkpoints beside it.

    Args:
        analysis: of this checkpoint; its stand-ins are used.
        split, limit: the samples to measure on, by default none that the analysis has seen.
        skip: also measure plans for this share by every planner. None: sites only.
        random: how many random plans of each action.
        tuning: also fine-tune every plan with these settings, and measure it again.
        resume: go on with `output/ablation.json`.

    Raises:
        PlanError: the analysis is of another model, or of one whose sites can't be changed alone.
        CheckpointError: `output/ablation.json` is of another run.
    """
    model = checkpoint.model
    found = discover_by_adapter(model)
    handovers = {} if found is None else handovers_of(model, found)
    if found is None or not handovers:
        raise PlanError(
            f"no adapter knows what the sites of this {type(model).__name__} hand on, so none can "
            "be changed alone; docs/adapters.md shows what an adapter needs"
        )
    analysed = [part.stage for part in analysis.stages]
    check_same_sites(
        analysed, fingerprint(analysed), found.stages, known="the analysis",
        claim="was made for another model", model=analysis.provenance.model, found="the checkpoint",
        advice="Analyse this checkpoint",
    )  # fmt: skip
    data = data or data_for(checkpoint)
    check_data(model, data)
    where = resolve_device(device)
    path = output / "ablation.json"
    start = Ablation(
        checkpoint_sha256=checkpoint.sha256, data=data.spec.source, split=split, limit=limit,
        batch_size=batch_size,
    )  # fmt: skip
    if resume:
        earlier = Ablation.load(path)
        defining = ("checkpoint_sha256", "data", "split", "limit", "batch_size")
        if different := [n for n in defining if getattr(earlier, n) != getattr(start, n)]:
            raise CheckpointError(
                f"{path} is of another run: {different[0]} is {getattr(earlier, different[0])!r}, "
                f"got {getattr(start, different[0])!r}; give the same again, or leave out --resume"
            )
        start = earlier
    stand_ins = {
        site.name: torch.from_numpy(coefficients)
        for part in analysis.stages
        if part.damage is not None
        for site, coefficients in zip(part.stage.sites, part.damage.stand_ins, strict=True)
        if coefficients is not None
    }
    loader = data.loader(split, batch_size=batch_size, limit=limit)
    result = start
    if not start.complete:
        steps = ablate_sites(model, handovers, stand_ins, loader, start, device=where)
        remaining = len(loader) - start.batches
        for result in track(steps, "changing sites", total=remaining, progress=progress):
            result.save(path)
        result = result.model_copy(update={"complete": True})
        result.save(path)
    if skip is None:
        return result
    done = {plan.name for plan in result.plans}
    plans = {n: p for n, p in candidate_plans(analysis, skip, random).items() if n not in done}
    for name, plan in track(plans.items(), "whole plans", total=len(plans), progress=progress):
        pruned = prune(model, plan)
        measured = evaluate(pruned, loader, where, progress=False)
        tuned: dict[str, Any] = {}
        if tuning is not None:
            small = Checkpoint(
                path=checkpoint.path, model=pruned, sha256=checkpoint.sha256,
                header=checkpoint.header.model_copy(
                    update={"plans": (*checkpoint.header.plans, plan), "metrics": {}}
                ),
            )  # fmt: skip
            file = output / f"{name}.pt"
            finetune(small, tuning, output=file, data=data, device=device, progress=False)
            again = evaluate(read_checkpoint(file).model, loader, where, progress=False)
            tuned = {"tuned_loss": again["loss"], "tuned_accuracy": again["accuracy"]}
        predicted = plan.origin.predicted_loss
        entry = PlanResult(
            name=name,
            planner=plan.origin.planner,
            action="affine" if plan.stand_ins else "skip",
            seed=plan.origin.seed,
            skipped=len(plan.skipped),
            predicted=None if predicted is None else predicted.mean,
            loss=measured["loss"],
            accuracy=measured["accuracy"],
            **tuned,
        )
        result = result.model_copy(update={"plans": (*result.plans, entry)})
        result.save(path)
    return result


def candidate_plans(analysis: Analysis, skip: float, random: int) -> dict[str, SkipPlan]:
    """Plans for the same share by every planner that needs no further measurement, by name.

    Args:
        random: how many random plans of each action.
    """
    actions: list[SkipAction] = ["skip"]
    if any(part.damage is not None and any(s is not None for s in part.damage.stand_ins)
           for part in analysis.stages):  # fmt: skip
        actions.append("affine")
    plans = {"unpruned": make_plan(analysis, skip=0.0, planner="budget")}
    if analysis.has_damage:
        plans["damage"] = make_plan(analysis, skip=skip, planner="damage")
    for action in actions:
        if analysis.has_damage:
            plans[f"damage-{action}"] = make_plan(
                analysis, skip=skip, planner="damage", action=action
            )
        for planner in ("budget", "score", "alternate", "deepest"):
            plans[f"{planner}-{action}"] = make_plan(
                analysis, skip=skip, planner=planner, action=action
            )
        for seed in range(random):
            plans[f"random-{action}-{seed}"] = make_plan(
                analysis, skip=skip, planner="random", action=action, seed=seed
            )
    return plans


def data_for(
    checkpoint: Checkpoint,
    source: str | None = None,
    *,
    root: Path | None = None,
    download: bool = False,
    image_size: int | None = None,
) -> Data:
    """Open the data that a checkpoint was trained on, or other data for its model.

    Where the checkpoint names its data, other data get the same normalisation, classes and split.

    Args:
        source: data to open instead (`digits`, `npz:PREFIX`, ...).
        root: folder of the torchvision data sets.
        download: fetch a torchvision data set that is missing.
        image_size: resize images to this height and width, in pixels.

    Raises:
        CheckpointError: there is no source, and the checkpoint names none.
        OptionError: an image size for data without images.
        DataError: the data are missing or damaged.
    """
    spec = checkpoint.header.data
    if spec is None:
        if source is None:
            raise CheckpointError(
                f"{checkpoint.path} does not say what data it belongs to; name it with --data "
                "(digits, npz:PREFIX, folder:DIR, imagenet:DIR, fashion-mnist, cifar10, cifar100 "
                "or text:FILE), or analyze it on --example-inputs package.module:function or on "
                "random inputs, --input-size C,H,W"
            )
        return open_data(source, root=root, download=download, image_size=image_size)
    if source is not None or root is not None:
        spec = spec.with_source(source or spec.source, root=root)
    if image_size is not None:
        if spec.task != "images":
            raise OptionError(f"got --image-size {image_size}, but {spec.source} has no images")
        spec = spec.model_copy(update={"image_size": image_size})
    return data_from_spec(spec, download=download)


def check_task(spec: ModelSpec, source: str) -> None:
    """Raise DataError where a model of ours reads images and the source is text, or vice versa."""
    family = family_of(spec.name)
    task = "tokens" if source.startswith("text:") else "images"
    if family is not None and family.reads != task:
        raise DataError(
            f"{spec.name} reads {family.reads}, but {source} holds {task}; choose other data with "
            "--data, or another model (see `ela-probe models`)"
        )


def check_data(model: nn.Module, data: Data) -> None:
    """Run the model on one blank sample of the data's shape.

    Raises:
        DataError: the model does not take such a sample, or has another number of classes.
    """
    inputs, labels = data.spec.example()
    logits = logits_of(
        _output_of(
            model,
            inputs,
            f"{data.spec.sample} as in {data.spec.source}",
            "choose other data with --data, or a model made for them",
        )
    )
    if logits is not None and logits.shape != (*labels.shape, data.spec.num_classes):
        raise DataError(
            f"{data.spec.source} has {data.spec.num_classes} classes, but the model's output for "
            f"a sample has shape {list(logits.shape[1:])}; choose other data with --data"
        )


def check_inputs(model: nn.Module, inputs: RandomInputs | ExampleInputs) -> None:
    """Run the model on the first sample. Raises DataError where it does not take it."""
    first = next(iter(inputs), None)
    if first is None:
        raise DataError(f"nothing to analyse: got no batch from {inputs}, expected at least one")
    _output_of(
        model,
        first_samples(inputs_and_labels(first, labelled=inputs.labelled)[0], 1),
        str(inputs),
        "expected what its forward takes: see --input-size, --input-dtype, --example-inputs",
    )


@torch.no_grad()
def _output_of(model: nn.Module, inputs: Any, name: str, advice: str) -> Any:
    """The model's output for the inputs, in eval mode.

    Raises:
        DataError: the model does not take them; the message holds `name` and `advice`.
    """
    try:
        with eval_mode(model):
            return call(model, moved(inputs, model))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise DataError(
            f"the model does not take {name} ({first_line(error)}); {advice}"
        ) from error


def _fit(
    model: nn.Module,
    spec: ModelSpec,
    plans: Sequence[SkipPlan],
    data: Data,
    config: TrainConfig,
    output: Path,
    device: str,
    processes: Processes,
    resume: bool,
    progress: bool,
    ela: ELA | None = None,
    *,
    start: Mapping[str, Any] | None = None,
) -> FitResult:
    check_data(model, data)
    built = spec.model_dump(mode="json")
    arguments = {f"argument {name}": value for name, value in built["args"].items()}
    definition = {"model": {"name": built["name"], **arguments}, "start": start or {}}

    def save(path: Path, state: Mapping[str, Tensor], metrics: Mapping[str, float]) -> None:
        carried = plans if ela is None or ela.plan is None else (*plans, ela.plan)
        save_checkpoint(
            path, state, spec=spec, plans=carried, data=data.spec, metrics=dict(metrics)
        )

    return fit(
        model, data, config, output=output, save=save, device=device, processes=processes,
        resume=resume, progress=progress, callbacks=[] if ela is None else [ela],
        definition=definition,
    )  # fmt: skip

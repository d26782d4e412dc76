"""Measure what changing single sites, and whole plans, really does to the loss."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from ela_probe.analysis.damage_probe import handovers_of
from ela_probe.analysis.result import Analysis
from ela_probe.checkpoint import Checkpoint, read_checkpoint
from ela_probe.data.opening import Data
from ela_probe.discovery.discover import discover_by_adapter
from ela_probe.errors import CheckpointError, PlanError
from ela_probe.evaluation.evaluate import evaluate
from ela_probe.models.detection import Detector
from ela_probe.pipeline.inputs import Split, batch_size_for, check_data, data_for
from ela_probe.pipeline.refit import refit_checkpoint
from ela_probe.pipeline.rounds import plan_in_rounds
from ela_probe.pipeline.train import finetune
from ela_probe.pruning.ablation import Ablation, PlanResult, ablate_sites
from ela_probe.pruning.candidates import candidate_plans, plans_for_time
from ela_probe.pruning.cost_model import CostModel
from ela_probe.pruning.kept_detections import KeptDetections
from ela_probe.pruning.plan import SkipPlan
from ela_probe.pruning.prune import prune
from ela_probe.sites import check_same_sites, fingerprint
from ela_probe.system.device import resolve_device
from ela_probe.system.numbers import finite_or_none
from ela_probe.system.progress import track
from ela_probe.training.config import TrainConfig

# A folder in that of the ablation, as long as batches are to come.
DETECTIONS = "detections"
# The plan by damage that is measured again after every quarter of its removals.
IN_ROUNDS, ROUNDS = "damage-rounds", 4


def ablate_checkpoint(
    checkpoint: Checkpoint,
    analysis: Analysis,
    *,
    output: Path,
    data: Data | None = None,
    split: Split = "test",
    limit: int | None = None,
    batch_size: int | None = None,
    skip: float | None = None,
    costs: CostModel | None = None,
    time: float | None = None,
    random: int = 10,
    tuning: TrainConfig | None = None,
    device: str = "auto",
    resume: bool = False,
    progress: bool = True,
) -> Ablation:
    """Measure what each action at each site does to the loss, then what whole plans do.

    Of a detector also what each does to the average precision of boxes.

    Writes `output/ablation.json` after every batch and every plan, and tuned checkpoints beside it;
    until the last batch also the boxes that a detector finds (`KeptDetections`).

    Args:
        analysis: of this checkpoint; its stand-ins are used.
        split, limit: the samples to measure on, by default none that the analysis has seen.
        batch_size: 256 when None, for detectors 16.
        skip: also measure plans for this share by every planner, and one by damage in rounds.
        costs, time: also measure plans for this share of the step's time: the one of least damage,
            and random ones. Without `skip` and `time` only sites are measured.
        random: how many random plans of each action.
        tuning: also fine-tune every plan with these settings, and measure it again.
        resume: go on with `output/ablation.json`.

    Raises:
        PlanError: the analysis is of another model, or of one whose sites can't be changed alone.
            Or, on resuming, the detections so far are missing or changed.
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
    batch_size = batch_size_for(data, batch_size, 256)
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
    candidates = {} if skip is None else candidate_plans(analysis, skip, random)
    if costs is not None and time is not None:
        candidates |= plans_for_time(analysis, costs, time, random)
    stand_ins = {
        site.name: torch.from_numpy(coefficients)
        for part in analysis.stages
        if part.damage is not None
        for site, coefficients in zip(part.stage.sites, part.damage.stand_ins, strict=True)
        if coefficients is not None
    }
    loader = data.loader(split, batch_size=batch_size, limit=limit)
    result = start
    kept = KeptDetections(output / DETECTIONS) if isinstance(model, Detector) else None
    if kept is not None:
        kept.check(start.detections)
    if not start.complete:
        steps = ablate_sites(model, handovers, stand_ins, loader, start, device=where, kept=kept)
        remaining = len(loader) - start.batches
        for result in track(steps, "changing sites", total=remaining, progress=progress):
            result.save(path)
        result = result.finished(kept, progress=progress)
        result.save(path)
    if kept is not None:
        kept.remove()
    finished = {plan.name: plan for plan in result.plans}
    if skip is not None and analysis.has_damage and IN_ROUNDS not in finished:
        candidates[IN_ROUNDS] = plan_in_rounds(
            checkpoint, analysis, rounds=ROUNDS, skip=skip, data=data,
            limit=analysis.provenance.samples, device=device, progress=progress,
        )  # fmt: skip
    # Small networks have few plans: one that is drawn twice is measured once.
    known = {
        tuple(plan.changes.items()): finished[name]
        for name, plan in candidates.items()
        if name in finished
    }
    plans = {n: p for n, p in candidates.items() if n not in finished}
    for name, plan in track(plans.items(), "whole plans", total=len(plans), progress=progress):
        changes = tuple(plan.changes.items())
        if changes not in known:
            known[changes] = _measure_plan(
                checkpoint, plan, loader, file=output / f"{name}.pt", tuning=tuning, data=data,
                device=device,
            )  # fmt: skip
        origin = plan.origin
        predicted = None if origin.predicted_loss is None else origin.predicted_loss.mean
        entry = known[changes].model_copy(
            update={
                "name": name, "planner": origin.planner, "seed": origin.seed,
                "time_ratio": origin.predicted_ratio, "predicted": predicted,
            }
        )  # fmt: skip
        result = result.model_copy(update={"plans": (*result.plans, entry)})
        result.save(path)
    return result


def _measure_plan(
    checkpoint: Checkpoint,
    plan: SkipPlan,
    loader: Iterable[Any],
    *,
    file: Path,
    tuning: TrainConfig | None,
    data: Data,
    device: str,
) -> PlanResult:
    """Prune by a plan whose stand-ins are fitted to each other; measure before and after tuning.

    Args:
        file: of the tuned checkpoint.
    """
    plan = refit_checkpoint(checkpoint, plan, data=data, device=device, progress=False)
    pruned, where = prune(checkpoint.model, plan), resolve_device(device)
    measured = evaluate(pruned, loader, where, progress=False)
    tuned: dict[str, Any] = {}
    if tuning is not None:
        small = Checkpoint(
            path=checkpoint.path, model=pruned, sha256=checkpoint.sha256,
            header=checkpoint.header.model_copy(
                update={"plans": (*checkpoint.header.plans, plan), "metrics": {}}
            ),
        )  # fmt: skip
        finetune(small, tuning, output=file, data=data, device=device, progress=False)
        again = evaluate(read_checkpoint(file).model, loader, where, progress=False)
        tuned = {
            "tuned_loss": again["loss"],
            "tuned_accuracy": finite_or_none(again["accuracy"]),
            "tuned_ap": box_ap(again),
        }
    return PlanResult(
        name=file.stem,
        planner=plan.origin.planner,
        action="affine" if plan.stand_ins else "skip",
        skipped=len(plan.skipped),
        loss=measured["loss"],
        accuracy=finite_or_none(measured["accuracy"]),
        ap=box_ap(measured),
        **tuned,
    )


def box_ap(measured: Mapping[str, Any]) -> float | None:
    """The average precision of the boxes in what `evaluate` returned; None for classifiers."""
    precision = measured.get("precision")
    return None if precision is None else precision.box.ap

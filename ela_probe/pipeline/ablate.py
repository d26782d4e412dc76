"""Measure what changing single sites, and whole plans, really does to the loss."""

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
from ela_probe.pipeline.inputs import Split, check_data, data_for
from ela_probe.pipeline.refit import refit_checkpoint
from ela_probe.pipeline.train import finetune
from ela_probe.pruning.ablation import Ablation, PlanResult, ablate_sites
from ela_probe.pruning.candidates import candidate_plans
from ela_probe.pruning.prune import prune
from ela_probe.sites import check_same_sites, fingerprint
from ela_probe.system.device import resolve_device
from ela_probe.system.progress import track
from ela_probe.training.config import TrainConfig


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
        plan = refit_checkpoint(checkpoint, plan, data=data, device=device, progress=False)
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

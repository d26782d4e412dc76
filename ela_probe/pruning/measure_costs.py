"""Measuring how much time each action at a retrieval costs on the device.

Whole training steps are timed, of models that are pruned so that one action prevails in one stage.
A linear model is fitted to these times. So any model that can be pruned can be measured.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor, nn

from ela_probe.adapters.registry import adapter_for, cannot_prune
from ela_probe.analysis.damage_probe import handovers_of
from ela_probe.analysis.stand_ins import fit_stand_ins
from ela_probe.discovery.discover import discover
from ela_probe.errors import PlanError
from ela_probe.evaluation.profiling import (
    alternate,
    cuda_devices,
    describe_machine,
    first_tensor,
    formatted,
    placed,
    training_step,
)
from ela_probe.forward import check_has_values, first_samples, refuse_compiled, unwrap
from ela_probe.pruning.cost_model import (
    Actions,
    CostModel,
    Seconds,
    SiteChoices,
    StageCosts,
    Terms,
)
from ela_probe.pruning.plan import SkipPlan, encode_stand_in
from ela_probe.pruning.prune import prune
from ela_probe.sites import Action, Stage, fingerprint
from ela_probe.system.arrays import Floats
from ela_probe.system.progress import track
from ela_probe.system.versions import __version__


def measure_costs(
    model: nn.Module,
    batch: tuple[Any, Any],
    *,
    device: torch.device | None = None,
    rounds: int = 10,
    warmup: int = 2,
    name: str | None = None,
    progress: bool = True,
) -> CostModel:
    """Time training steps under plans that separate the actions' costs.

    A step is that of `measure_latency`; the plans take turns. Each time is divided by the unpruned
    step's time in the same round. The medians of these ratios are fitted by least squares, with no
    cost below 0.

    Args:
        model: it stays unchanged, and so does the random state.
        batch: inputs and labels, as `evaluate` takes them.
        device: where to measure; the inputs' device when None.
        rounds: in each round, every plan's model takes one step. warmup: rounds before that, which
            don't count.
        name: of the model, for messages.

    Raises:
        PlanError: no adapter can prune the model. OptionError: no rounds.
        ModelError: the model has no layer attention, was compiled, or is on the meta device.
    """
    refuse_compiled(model)
    model = unwrap(model)
    check_has_values(model)
    if adapter_for(model) is None:
        raise cannot_prune(model)
    device, inputs, labels = placed(batch, device)
    found = discover(model)
    stand_ins = fit_stand_ins(
        model,
        handovers_of(model, found),
        [(first_samples(inputs, 2), None)],
        device=device,
        progress=False,
    )  # only their shapes matter here
    stages = [
        possible_actions(model, stage, stand_ins)
        for stage in track(found.stages, "trying what can be pruned", progress=progress)
    ]
    plans = list(plans_to_time(stages))
    with torch.random.fork_rng(devices=cuda_devices(device)):
        steps = {}
        for number, actions in enumerate(plans):
            pruned = pruned_or_none(model, actions, stand_ins)
            if pruned is not None:
                steps[str(number)] = training_step(
                    pruned.to(device), formatted(inputs, pruned), labels
                )
        taken = alternate(
            steps,
            rounds=rounds,
            warmup=warmup,
            device=device,
            description="timing training",
            progress=progress,
        )
    seconds = np.array(list(taken.values()))
    rows = [
        [1, *(count for stage in stages for count in stage.terms(plans[int(number)]))]
        for number in taken
    ]
    width = len(Terms._fields)
    fitted, error = fit_terms(np.array(rows, dtype=float), seconds)
    costs = [
        stage.model_copy(update=dict(zip(Terms._fields, fitted[n : n + width], strict=True)))
        for n, stage in zip(range(1, len(fitted), width), stages, strict=True)
    ]
    assert fitted[0] is not None
    lower, median, upper = np.percentile(seconds[0], [25, 50, 75])
    return CostModel(
        fingerprint=fingerprint(found.stages),
        model=name,
        machine=describe_machine(device),
        batch_shape=tuple(first_tensor(inputs).shape),
        rounds=rounds,
        ela_probe=__version__,
        unpruned=Seconds(value=median, lower=lower, upper=upper),
        base=fitted[0],
        error=error,
        stages=tuple(costs),
    )


def fit_terms(terms: Floats, seconds: Floats) -> tuple[list[Seconds | None], float]:
    """The seconds of each term, and the largest relative difference of a median from the fit.

    Args:
        terms: [steps, terms] counts; the first step is the unpruned one.
        seconds: [steps, rounds].

    Returns: None for a term that no step has, or that earlier terms determine (collinear).
    """
    known: list[int] = []
    for column in range(terms.shape[1]):
        if np.linalg.matrix_rank(terms[:, [*known, column]]) > len(known):
            known.append(column)
    ratios, unit = seconds / seconds[0], float(np.median(seconds[0]))
    medians = np.median(ratios, axis=1)
    values, _ = nnls(terms[:, known], medians)
    by_round = np.linalg.lstsq(terms[:, known], ratios, rcond=None)[0]
    quartiles = np.percentile(by_round, [25, 75], axis=1)
    costs: list[Seconds | None] = [None] * terms.shape[1]
    for column, value, lower, upper in zip(known, values, *quartiles, strict=True):
        costs[column] = Seconds(value=value * unit, lower=lower * unit, upper=upper * unit)
    return costs, float(np.abs(terms[:, known] @ values / medians - 1).max())


def plans_to_time(stages: Sequence[StageCosts]) -> Iterator[dict[str, Action]]:
    """The actions of the plans to time: the unpruned one first, and no two with equal terms.

    In the base plan only the first retrieval of every stage is kept and the others are dropped.
    The plans after it change one stage of the base plan: all of it kept; its first half kept
    (fewer sites, with few sources); its first half skipped; the same with stand-ins; all recurring;
    every second one recurring.
    """
    seen = set()
    base: dict[str, Action] = {site.name: "drop" for s in stages for site in s.sites[1:]}
    plans: list[dict[str, Action]] = [{}, base]
    for stage in stages:
        rest = stage.sites[1:]
        half = len(rest) // 2
        others = {name: a for name, a in base.items() if name not in {s.name for s in rest}}
        plans += [
            others,
            {**others, **{site.name: "drop" for site in rest[half:]}},
            {**others, **{site.name: "skip" for site in rest[: max(1, half)]}},
            {
                **others,
                **{s.name: "affine" for s in rest[: max(1, half)] if "affine" in s.actions},
            },
            {**others, **{site.name: "recur" for site in rest if "recur" in site.actions}},
            {**others, **{site.name: "recur" for site in rest[1::2] if "recur" in site.actions}},
        ]
    for plan in plans:
        counted = tuple(stage.terms(plan) for stage in stages)
        if counted not in seen:
            seen.add(counted)
            yield plan


def possible_actions(
    model: nn.Module, stage: Stage, stand_ins: Mapping[str, Tensor] | None = None
) -> StageCosts:
    """A stage without its costs yet: the actions that its adapter accepts, found by trying them."""
    choices: tuple[Action, ...] = ("recur", "skip", "drop", "affine")
    sites = []
    for t, site in enumerate(stage.sites):
        accepted = [
            a for a in choices if t and pruned_or_none(model, {site.name: a}, stand_ins) is not None
        ]
        sites.append(SiteChoices(name=site.name, sources=site.sources, actions=("keep", *accepted)))
    pairs = (
        (a, b) for a, b in itertools.pairwise(sites) if "skip" in a.actions and "recur" in b.actions
    )
    pair = next(pairs, None)
    return StageCosts(
        name=stage.name,
        kind=stage.kind,
        carried_over=stage.carried_over,
        recur_after_skip=pair is not None
        and pruned_or_none(model, {pair[0].name: "skip", pair[1].name: "recur"}) is not None,
        sites=tuple(sites),
    )


def pruned_or_none(
    model: nn.Module, actions: Actions, stand_ins: Mapping[str, Tensor] | None = None
) -> nn.Module | None:
    """The model pruned by these actions; None where its adapter refuses them.

    Args:
        stand_ins: by site name the coefficients of `affine`; without them it is refused.

    Raises:
        PlanError: the adapter refuses even to keep everything, so it can't prune at all.
    """
    known = stand_ins or {}
    figures = {
        site: {"stand_in": encode_stand_in(known[site].numpy())}
        for site, action in actions.items()
        if action == "affine" and site in known
    }
    try:
        return prune(model, SkipPlan.for_actions(discover(model).stages, actions, figures=figures))
    except PlanError:
        if not actions:
            raise
        return None

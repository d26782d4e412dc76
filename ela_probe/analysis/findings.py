"""Sentences about an analysis that a person can act on, for the report and the command line."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ela_probe.analysis.damage import REMOVING, DamageEstimate, total
from ela_probe.analysis.result import Analysis, StageAnalysis
from ela_probe.sites import OPTIONAL, Action, has_divergences
from ela_probe.system.messages import quoted
from ela_probe.system.numbers import readable

# Pinsker: kl < 0.05 nats means that on average at most √(0.05/2) = 16 % of the weight moves.
NEAR = 0.05
# The same for `signed` weights: the mixed values differ by less than a tenth of their norm.
NEAR_VALUES = 0.1
# A verdict is given if two standard errors (about 95 %) don't reach across the threshold.
CERTAINTY = 2.0
# Below this the standard errors themselves are uncertain by more than 1/√(2·50) = 10 %.
FEW_SAMPLES = 50
# At 5 nats the later retrieval leaves e⁻⁵ = 0.7 % of its weight where the earlier one had all of
# its weight. Such weights are close to one-hot and jump from source to source.
SATURATED = 5.0
# A Kolmogorov-Smirnov distance above this means quantiles that are wrong by up to a tenth.
POOR_FIT = 0.1
# How many sites a sentence names.
NAMED = 6

# A plan that adds this much to the loss, in nats, is the largest that is recommended.
SMALL_LOSS = 0.02

Kind = Literal["damage", "summary", "repeats", "extends", "distinct", "undecided", "fit", "caution"]
Verdict = Literal["first", "repeats", "extends", "distinct", "undecided"]


@dataclass(frozen=True)
class Finding:
    """One sentence about a stage, or about the whole analysis if stage is None.

    sites: the full names of the sites it is about.
    """

    kind: Kind
    text: str
    stage: str | None = None
    sites: tuple[str, ...] = ()


def findings(analysis: Analysis) -> list[Finding]:
    """What skipping costs; how alike retrievals are; then of every stage the verdicts and fit."""
    result = [_about_damage(analysis)] if analysis.has_damage else []
    result.append(_summary(analysis))
    counts = [part.samples for part in analysis.stages if part.stage.kind != "static"]
    samples = min(counts, default=0)
    if 0 < samples < FEW_SAMPLES:
        result.append(
            Finding(
                "caution",
                f"Only {samples} sample{'s' * (samples > 1)}: too few for firm verdicts; analyse "
                f"at least {FEW_SAMPLES}, better some thousands.",
            )
        )
    for part in analysis.stages:
        result += _about_stage(part)
    return result


def recommended_share(analysis: Analysis) -> float | None:
    """The share of all retrievals to skip first; None if none is recommended.

    By damage it is the largest share whose predicted loss change is at most SMALL_LOSS; where
    damage was not measured, the share that nearly repeat the one before, and none with a stage of
    `signed` weights, which no planner by divergence takes. It is below 1, as `make_plan` takes
    it, which rounds a share to a whole number of retrievals; it has as few digits as give that
    number back.
    """
    found = [verdict for part in analysis.stages for verdict in verdicts(part)]
    first = len(cheap_sites(analysis)) if analysis.has_damage else found.count("repeats")
    planned = analysis.has_damage or "l2" not in analysis.measures
    if not first or not planned:
        return None
    exact = first / len(found)
    rounded = (min(round(exact, digits), round(1 - 10**-digits, digits)) for digits in range(1, 17))
    return next(share for share in rounded if math.floor(share * len(found) + 0.5) == first)


def cheap_sites(analysis: Analysis) -> dict[str, tuple[Action, DamageEstimate]]:
    """The most sites whose removal adds at most SMALL_LOSS together, with action and damage.

    At least one site of each stage is kept, but none of a stage whose kind is in OPTIONAL.
    """
    known = sorted(
        (
            (found, s, site.name)
            for s, part in enumerate(analysis.stages)
            for t, site in enumerate(part.stage.sites)
            if part.damage is not None
            and (found := part.damage.cheapest(t, REMOVING, kind=part.stage.kind))
        ),
        key=lambda entry: entry[0][1].mean,
    )
    left = [len(part.stage.sites) - (part.stage.kind not in OPTIONAL) for part in analysis.stages]
    chosen: dict[str, tuple[Action, DamageEstimate]] = {}
    loss = 0.0
    for found, s, name in known:
        if left[s] and loss + found[1].mean <= SMALL_LOSS:
            chosen[name] = found
            loss += found[1].mean
            left[s] -= 1
    return chosen


def next_command(analysis: Analysis, folder: str | Path) -> str | None:
    """The command that plans the recommended share; None if there is none.

    Args:
        folder: where the analysis was saved.
    """
    share = recommended_share(analysis)
    if share is None:
        return None
    chosen = cheap_sites(analysis) if analysis.has_damage else {}
    emptied = any(all(s.name in chosen for s in part.stage.sites) for part in analysis.stages)
    guard = " --min-keep 0" if emptied else ""
    return f"ela-probe plan {quoted(folder)} --skip {share:g}{guard}"


def verdicts(part: StageAnalysis) -> tuple[Verdict, ...]:
    """[T] how each retrieval relates to the one before it.

    `repeats`: kl is below NEAR. `extends`: shape is below NEAR, but kl is not: the one before plus
    new sources (only if the one before has two sources or more, since over a single source shape is
    0 by definition). `distinct`: neither. `undecided`: the standard error is too large, or unknown.
    Of `signed` weights `repeats` means that l2 is below NEAR_VALUES, and nothing `extends`.
    `static` weights are exact, without a standard error.
    """
    sizes = part.stage.sizes
    if not has_divergences(part.stage.kind):
        pairs = zip(part.adjacent("l2")[1:], part.adjacent("l2_se")[1:], strict=True)
        known = [_below(mean, error, NEAR_VALUES) for mean, error in pairs]
        words: dict[bool | None, Verdict] = {True: "repeats", False: "distinct", None: "undecided"}
        return ("first", *(words[below] for below in known))
    values = {name: part.adjacent(name) for name in ("kl", "kl_se", "shape", "shape_se")}
    if part.stage.kind == "static":
        values |= {name: np.zeros(len(sizes)) for name in ("kl_se", "shape_se")}
    result: list[Verdict] = ["first"]
    for t in range(1, len(part.stage.sites)):
        near = _below(values["kl"][t], values["kl_se"][t])
        alike = _below(values["shape"][t], values["shape_se"][t])
        if near:
            result.append("repeats")
        elif near is None:
            result.append("undecided")
        elif sizes[t - 1] < 2:
            result.append("distinct")
        elif alike:
            result.append("extends")
        else:
            result.append("undecided" if alike is None else "distinct")
    return tuple(result)


def no_fit_reason(part: StageAnalysis) -> str | None:
    """Why a stage has no Beta fit, in a few words; None if it has one."""
    if part.fit is not None:
        return None
    if not has_divergences(part.stage.kind):
        return "its weights are signed, and a fit is one of divergences"
    if len(part.stage.sites) < 2:
        return "the stage has one retrieval, so there is nothing to compare"
    n = part.pooled.n
    if n < 2:
        return f"{n} divergence{'s' * (n != 1)} recorded, and a fit needs at least 2"
    if part.pooled.zeros == n:
        return "all divergences are 0: the weights don't change from site to site"
    return (
        "no spread: the divergences are equal to within 2 % (in the odds of u), too narrow for a "
        "distribution"
    )


def _below(mean: float, error: float, near: float = NEAR) -> bool | None:
    """Whether a mean is below `near`; None if its standard error is too large to tell."""
    if not math.isfinite(error) or abs(mean - near) < CERTAINTY * error:
        return None
    return bool(mean < near)


def _about_damage(analysis: Analysis) -> Finding:
    """What the recommended share costs, or the cheapest retrieval where none is recommended."""
    chosen = cheap_sites(analysis)
    count = sum(len(part.stage.sites) for part in analysis.stages)
    loss = analysis.provenance.loss
    now = "" if loss is None else f" (the loss is {readable(loss)})"
    if chosen:
        mean, error = total([(e.mean, e.se) for _, e in chosen.values()])
        stand_ins = sum(action == "affine" for action, _ in chosen.values())
        how = f", {stand_ins} of them with a stand-in" if stand_ins else ""
        return Finding(
            "damage",
            f"Skipping {len(chosen)} of {count} retrievals{how} costs about {readable(mean)} ± "
            f"{readable(error, digits=1)} nats, as predicted site by site{now}: "
            f"{_listed(chosen)}. A first share to try is {recommended_share(analysis):g} of all "
            "retrievals.",
            sites=tuple(chosen),
        )
    known = [
        (found[1], site.name)
        for part in analysis.stages
        for t, site in enumerate(part.stage.sites)
        if part.damage is not None
        and (found := part.damage.cheapest(t, REMOVING, kind=part.stage.kind))
    ]
    if not known:
        return Finding("damage", "No retrieval has an action whose damage was measured.")
    estimate, name = min(known)
    return Finding(
        "damage",
        f"Skipping any of the {count} retrievals costs more than {SMALL_LOSS} nats, as predicted"
        f"{now}; the cheapest is {name}, {readable(estimate.mean)} ± "
        f"{readable(estimate.se, digits=1)} nats.",
        sites=(name,),
    )


def _summary(analysis: Analysis) -> Finding:
    all_verdicts = [
        (site.name, verdict)
        for part in analysis.stages
        for site, verdict in zip(part.stage.sites, verdicts(part), strict=True)
    ]
    count = len(all_verdicts)
    near = tuple(name for name, verdict in all_verdicts if verdict == "repeats")
    wider = sum(verdict == "extends" for _, verdict in all_verdicts)
    undecided = sum(verdict == "undecided" for _, verdict in all_verdicts)
    where = f"{count} retrieval{'s' * (count != 1)} in {len(analysis.stages)} stage" + "s" * (
        len(analysis.stages) != 1
    )
    notes = []
    if wider:
        verb = "reads" if wider == 1 else "read"
        notes.append(f"{wider} {verb} what the one before did and new sources")
    if undecided:
        notes.append(f"{undecided} {'is' if undecided == 1 else 'are'} too uncertain to tell")
    tail = f" ({'; '.join(notes)})" if notes else ""
    verb = "repeats" if len(near) == 1 else "repeat"
    if analysis.has_damage:
        text = (
            f"{len(near) or 'None'} of {where} nearly {verb} the one before{tail}. That says what "
            "is retrieved; the damage says what it is worth."
        )
    elif (share := recommended_share(analysis)) is not None:
        text = (
            f"{len(near)} of {where} nearly {verb} the one before{tail}. A first share to try is "
            f"{share:g} of all retrievals; what skipping them costs was not measured."
        )
    elif undecided:
        text = f"{where}: no redundancy is certain{tail}; analyse more samples before you plan."
    else:
        text = (
            f"{where}: none nearly repeats the one before{tail}. No share to skip is recommended: "
            "every skipped retrieval changes what the network reads."
        )
    return Finding("summary", text, sites=near)


def _about_stage(part: StageAnalysis) -> list[Finding]:
    name, names = part.stage.name, [site.name for site in part.stage.sites]
    found = verdicts(part)
    noun = {
        "softmax": "retrievals",
        "unrolled": "retrievals (unrolled weights)",
        "static": "retrievals (static weights)",
        "signed": "retrievals (signed weights)",
        "channel": "channel profiles (not layer attention)",
    }[part.stage.kind]
    if len(names) < 2:
        return [Finding("distinct", f"{name}: one retrieval only; nothing to compare.", name)]

    def sites_with(verdict: Verdict) -> tuple[str, ...]:
        return tuple(n for n, v in zip(names, found, strict=True) if v == verdict)

    result = []
    by_values = not has_divergences(part.stage.kind)
    if by_values:
        threshold = f"{NEAR_VALUES:g}, as a share of the norm of the mixed values"
        meaning = f"l2 < {NEAR_VALUES:g}: their mixed values differ by less than {NEAR_VALUES:.0%}"
        unit = "l2"
    else:
        threshold, unit = f"{NEAR} nats", "nats"
        meaning = (
            f"kl < {NEAR} nats: on average at most {math.sqrt(NEAR / 2):.0%} of the weight moves"
        )
    apart = part.adjacent(part.measures[0])[1:]
    if near := sites_with("repeats"):
        result.append(
            Finding(
                "repeats",
                f"{name}: {len(near)} of {len(names)} {noun} nearly "
                f"repeat{'s' * (len(near) == 1)} the one before ({meaning}): {_listed(near)}.",
                name,
                near,
            )
        )
    if wider := sites_with("extends"):
        added = [part.adjacent("mass")[names.index(site)] for site in wider]
        result.append(
            Finding(
                "extends",
                f"{name}: {len(wider)} of {len(names)} {noun} read"
                f"{'s' * (len(wider) == 1)} what the one before did and give"
                f"{'s' * (len(wider) == 1)} {_percent(added)} of the weight to new sources "
                f"(shape < {NEAR} nats, mass > 0): {_listed(wider)}.",
                name,
                wider,
            )
        )
    if unsure := sites_with("undecided"):
        result.append(
            Finding(
                "undecided",
                f"{name}: {len(unsure)} of {len(names)} {noun} may be below or above {threshold}; "
                f"{part.samples} sample{'s' * (part.samples != 1)} can't tell: {_listed(unsure)}.",
                name,
                unsure,
            )
        )
    if not near and not wider and not unsure:
        closest = int(np.argmin(apart))
        result.append(
            Finding(
                "distinct",
                f"{name}: no redundancy: each of the {len(names)} {noun} differs from the one "
                f"before; the closest is {names[closest + 1]} ({readable(apart[closest])} {unit}).",
                name,
            )
        )
    if by_values:
        return result
    if float(np.median(apart)) > SATURATED:
        result.append(
            Finding(
                "caution",
                f"{name}: half of the retrievals are more than {SATURATED:g} nats from the one "
                "before: their weights are close to one-hot, as in an untrained network.",
                name,
            )
        )
    if part.samples > 1 and part.adjacent("kl_se")[1:].max() < 1e-6 * max(apart.max(), NEAR):
        result.append(
            Finding("caution", f"{name}: the weights are the same for every input.", name)
        )
    return [*result, _about_fit(part)]


def _about_fit(part: StageAnalysis) -> Finding:
    name, fit = part.stage.name, part.fit
    if fit is None:
        return Finding(
            "caution",
            f"{name}: no Beta fit ({no_fit_reason(part)}), so no quantiles and no skip scores; "
            "the budget and threshold planners need none.",
            name,
        )
    fitted = f"Beta({readable(fit.alpha)}, {readable(fit.beta)}), fitted to {fit.n:,} divergences"
    if fit.method == "moments":
        fitted += " by moments because maximum likelihood did not converge"
    if fit.ks > POOR_FIT:
        planner = "budget" if part.damage is None else "damage"
        return Finding(
            "caution",
            f"{name}: {fitted}, fits poorly (Kolmogorov-Smirnov distance {fit.ks:.2f} > "
            f"{POOR_FIT}); use its quantiles as a ranking only, and prefer the planner "
            f"`{planner}`.",
            name,
        )
    return Finding(
        "fit", f"{name}: {fitted}, fits well (Kolmogorov-Smirnov distance {fit.ks:.2f}).", name
    )


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _percent(masses: list[float]) -> str:
    """Masses in nats (−log of what is kept) as the share of weight on new sources."""
    low, high = -math.expm1(-min(masses)), -math.expm1(-max(masses))
    return f"{low:.0%}" if f"{low:.0%}" == f"{high:.0%}" else f"{low:.0%} to {high:.0%}"

"""The plans of the page's slider: one for every budget, stored as what differs between them.

In a plan's JSON most of a site's entry depends only on its action and on the site that it is
compared with. So each distinct entry of a site is stored once (a variant), and a plan is the number
of the variant of every site, with the scores, which depend on the budget.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ela_probe.pruning.plan import SkipPlan

# What a plan says of itself, apart from its sites.
OWN = ("target", "charge", "origin")


def plans_data(plans: Mapping[int, SkipPlan]) -> dict[str, Any]:
    """The plans by their number of skipped retrievals, as plain values (`plan_of` undoes it).

    Returns: `document`: the first plan without what differs; `variants`: of every site its distinct
    entries; `stand_ins`: of every site its stand-in, for the entries with the action `affine`;
    `budgets`: of every plan its number, its own fields, and of every site variant and score.
    """
    documents = {count: plan.model_dump(mode="json") for count, plan in plans.items()}
    first = next(iter(documents.values()))
    sites = sum(len(stage["sites"]) for stage in first["stages"])
    variants: list[list[dict[str, Any]]] = [[] for _ in range(sites)]
    stand_ins: list[str | None] = [None] * sites
    budgets = []
    for count, document in documents.items():
        chosen, scores = [], []
        entries = (site for stage in document["stages"] for site in stage["sites"])
        for s, entry in enumerate(entries):
            scores.append(entry.pop("score"))
            stand_in = entry.pop("stand_in")
            stand_ins[s] = stand_ins[s] if stand_in is None else stand_in
            if entry not in variants[s]:
                variants[s].append(entry)
            chosen.append(variants[s].index(entry))
        own = {name: document.pop(name) for name in OWN}
        budgets.append({"count": count, **own, "chosen": chosen, "scores": scores})
    for stage in first["stages"]:
        stage["sites"] = len(stage["sites"])
    return {
        "document": first, "variants": variants, "stand_ins": stand_ins, "budgets": budgets,
    }  # fmt: skip


def plan_of(data: Mapping[str, Any], index: int) -> SkipPlan:
    """The plan at a position of `budgets`, put together as the page does it."""
    budget = data["budgets"][index]
    document = {**data["document"], **{name: budget[name] for name in OWN}}
    entries = [
        {
            **variants[chosen],
            "score": score,
            "stand_in": stand_in if variants[chosen]["action"] == "affine" else None,
        }
        for variants, chosen, score, stand_in in zip(
            data["variants"], budget["chosen"], budget["scores"], data["stand_ins"], strict=True
        )
    ]
    stages, start = [], 0
    for stage in document["stages"]:
        end = start + stage["sites"]
        stages.append({**stage, "sites": entries[start:end]})
        start = end
    return SkipPlan.parse(json.dumps({**document, "stages": stages}))

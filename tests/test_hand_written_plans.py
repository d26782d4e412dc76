"""Plans edited by hand: what contradicts itself or the model is refused in one clear line."""

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ela_probe import analyze, create_model
from ela_probe.analysis.result import Analysis
from ela_probe.errors import AnalysisError, PlanError
from ela_probe.pruning.plan import Constraints, SkipPlan
from ela_probe.pruning.planners import make_plan
from ela_probe.sites import Action
from tests.support.planning import analysis_of, without_digests

Document = dict[str, Any]


def document(skip: float = 0.25, **options: Any) -> Document:
    plan = make_plan(analysis_of([4, 4]), skip=skip, **options)
    return json.loads(plan.model_dump_json())


def sites(plan: Document, stage: int = 0) -> list[Document]:
    return plan["stages"][stage]["sites"]


def twice(plan: Document) -> None:
    sites(plan).append(sites(plan)[1])


def twice_with_another_action(plan: Document) -> None:
    sites(plan, 1).append({**sites(plan)[1], "action": "drop"})


def keeps_too_few(plan: Document) -> None:
    plan["constraints"]["min_keep"] = 4


def skips_too_many_in_a_row(plan: Document) -> None:
    plan["constraints"]["max_run"] = 1
    for site in sites(plan)[1:3]:
        site["action"] = "skip"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (twice, r"s0\.1 occurs twice, with the actions '\w+' and '\w+'; list every site once"),
        (twice_with_another_action, r"s0\.1 occurs twice, with the actions '\w+' and 'drop'"),
        (keeps_too_few, r"s\d keeps \d of 4 sites, but the plan's own constraint min_keep is 4"),
        (skips_too_many_in_a_row, r"s0 skips 2 sites in a row \(s0\.1, s0\.2\).* max_run is 1"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(
    tmp_path: Path, change: Callable[[Document], None], message: str
) -> None:
    plan = document()
    change(plan)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan))
    with pytest.raises(PlanError, match=message) as caught:
        SkipPlan.load(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@given(st.permutations(range(4)), st.booleans())
def test_sites_or_stages_in_another_order_are_refused(order: list[int], stages: bool) -> None:
    analysis = analysis_of([4, 4])
    plan = document(skip=0.0)
    if stages:
        plan["stages"] = [plan["stages"][k % 2] for k in order[:1]] + [
            plan["stages"][1 - order[0] % 2]
        ]
        changed = order[0] % 2 != 0
    else:
        plan["stages"][1]["sites"] = [sites(plan, 1)[k] for k in order]
        changed = order != [0, 1, 2, 3]
    read = SkipPlan.parse(json.dumps(plan))
    real = [part.stage for part in analysis.stages]
    if not changed:
        read.check_sites(real)
        return
    with pytest.raises(PlanError, match="the sites are in another order"):
        read.check_sites(real)


def test_an_edited_fingerprint_or_stage_name_is_refused() -> None:
    real = [part.stage for part in analysis_of([4, 4]).stages]
    for change in ({"fingerprint": "0"}, {"stages": [{"name": "x"}]}):
        plan = document()
        plan["fingerprint"] = change.get("fingerprint", plan["fingerprint"])
        if "stages" in change:
            plan["stages"][0]["name"] = "x"
        with pytest.raises(PlanError, match="other names .* or the fingerprint was edited"):
            SkipPlan.parse(json.dumps(plan)).check_sites(real)


actions = st.lists(st.sampled_from(["keep", "recur", "skip", "drop"]), min_size=3, max_size=3)


@given(actions, st.none() | st.integers(1, 3), st.integers(1, 4))
def test_exactly_the_plans_that_obey_their_constraints_are_accepted(
    rest: list[Action], max_run: int | None, min_keep: int
) -> None:
    stages = [part.stage for part in analysis_of([4]).stages]
    chosen = ["keep", *rest]
    runs = [
        len(list(group))
        for skipped, group in itertools.groupby(a in ("skip", "drop") for a in chosen)
        if skipped
    ]
    obeyed = chosen.count("keep") >= min_keep and max(runs, default=0) <= (max_run or 4)
    constraints = Constraints(max_run=max_run, min_keep=min_keep)
    named = {f"s0.{t}": action for t, action in enumerate(chosen)}
    if obeyed:
        assert SkipPlan.for_actions(stages, named, constraints=constraints).actions == named
    else:
        with pytest.raises(PlanError, match="the plan's own constraint m"):
            SkipPlan.for_actions(stages, named, constraints=constraints)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["weights", "kl", "mass", "kl_of_means", "beta_sums"])
def test_an_analysis_with_broken_numbers_is_refused(
    tmp_path: Path, name: str, value: float
) -> None:
    analysis_of([4, 3]).save(tmp_path)
    with np.load(tmp_path / "arrays.npz") as stored:
        arrays = dict(stored)
    broken = arrays[f"1/{name}"].astype(float)
    broken[0, 1] = value
    np.savez(tmp_path / "arrays.npz", **{**arrays, f"1/{name}": broken})
    without_digests(tmp_path)
    with pytest.raises(AnalysisError, match=r"s1: .* of s1\.\d is -?(nan|inf); expected finite"):
        Analysis.load(tmp_path)


def test_an_analysis_with_broken_numbers_cannot_be_made_either() -> None:
    part = analysis_of([3]).stages[0]
    kl = part.divergences["kl"].copy()
    kl[0, 2] = np.nan
    with pytest.raises(AnalysisError, match=r"kl of s0\.2 is nan"):
        dataclasses.replace(part, divergences={**part.divergences, "kl": kl})


def test_unknown_standard_errors_are_no_fault(tmp_path: Path) -> None:
    part = analysis_of([3]).stages[0]
    unknown = np.full_like(part.divergences["kl_se"], np.nan)
    part = dataclasses.replace(part, divergences={**part.divergences, "kl_se": unknown})
    plan = make_plan(Analysis((part,), analysis_of([3]).provenance), skip=0.3)
    assert all(site.kl is None or site.kl.se is None for site in plan.stages[0].sites)
    assert SkipPlan.load(plan.save(tmp_path / "plan.json")) == plan


def test_a_broken_number_in_the_provenance_is_refused(tmp_path: Path) -> None:
    analysis_of([3]).save(tmp_path)
    path = tmp_path / "analysis.json"
    text = json.loads(path.read_text())
    text["provenance"]["loss"] = float("nan")
    path.write_text(json.dumps(text))
    with pytest.raises(AnalysisError, match="is damaged"):
        Analysis.load(tmp_path)


def test_a_model_of_broken_outputs_is_analysed_with_a_note(tmp_path: Path) -> None:
    model = create_model("mrla_b_resnet8")
    with torch.no_grad():
        model.fc.weight.fill_(torch.inf)  # type: ignore[operator]
    analysis = analyze(model, [(torch.randn(4, 3, 16, 16), torch.arange(4))], progress=False)
    assert analysis.provenance.loss is None
    assert any("the mean loss is nan" in note for note in analysis.provenance.notes)
    assert Analysis.load(analysis.save(tmp_path)).provenance == analysis.provenance

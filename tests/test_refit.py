"""Stand-ins that are fitted to each other: each to the unpruned model, on the model before it."""

import numpy as np
import pytest
import torch

from ela_probe import SkipPlan, analyze, discover, make_plan, prune
from ela_probe.analysis.damage_probe import handovers_of
from ela_probe.analysis.stand_ins import fit_stand_ins
from ela_probe.errors import DataError
from ela_probe.pruning.plan import encode_stand_in
from ela_probe.pruning.refit import refit_stand_ins
from tests.support.damage_networks import NETWORKS, batch, network, only


def affine_sites(name: str) -> list[str]:
    found = discover(network(name))
    handovers = handovers_of(network(name), found)
    return [site for site, handover in handovers.items() if "affine" in handover.actions]


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "published dia"])
def test_a_stand_in_alone_is_the_one_that_the_analysis_fits(name: str) -> None:
    model, data = network(name), [batch(name)]
    found = discover(model)
    fitted = fit_stand_ins(model, handovers_of(model, found), data, progress=False)
    site = affine_sites(name)[-1]
    plan = only(model, site, "affine", torch.zeros_like(fitted[site]))
    again = refit_stand_ins(model, plan, data, progress=False)
    np.testing.assert_array_equal(again.stand_ins[site], fitted[site].numpy())


@pytest.mark.parametrize("name", ["mrla_b", "dla_b", "attnres", "published mrla_b", "kcla"])
def test_it_changes_the_stand_ins_of_a_plan_only(name: str) -> None:
    model, data = network(name), [batch(name)]
    analysis = analyze(model, data, progress=False)
    plan = make_plan(analysis, skip=0.4, planner="alternate", action="affine")
    again = refit_stand_ins(model, plan, data, progress=False)
    assert again.changes == plan.changes
    assert {s.name: s.kl for st in again.stages for s in st.sites} == {
        s.name: s.kl for st in plan.stages for s in st.sites
    }
    first, *others = plan.stand_ins
    np.testing.assert_array_equal(again.stand_ins[first], plan.stand_ins[first])
    assert any((again.stand_ins[s] != plan.stand_ins[s]).any() for s in others)


def test_each_is_the_best_for_what_the_model_before_it_hands_on() -> None:
    """Of the output of the last site, so that no later one changes what is compared."""
    model, data = network("mrla_b"), [batch("mrla_b")]
    analysis = analyze(model, data, progress=False)
    sites = affine_sites("mrla_b")[-2:]
    plan = make_plan(analysis, skip=0.4, planner="deepest", action="affine")
    assert set(sites) <= set(plan.changes)

    def error(of: SkipPlan) -> float:
        found: list[torch.Tensor] = []
        for network_of in (model, prune(model, of)):
            block = network_of.get_submodule(sites[-1].rpartition(".")[0])
            handle = block.register_forward_hook(lambda *arguments: found.append(arguments[2][0]))
            with torch.no_grad():
                network_of(data[0][0])
            handle.remove()
        return float((found[1] - found[0]).square().sum())

    best = refit_stand_ins(model, plan, data, progress=False)
    other = best.model_dump()
    *_, last = (site for stage in other["stages"] for site in stage["sites"])
    assert last["name"] == sites[-1]
    last["stand_in"] = encode_stand_in(plan.stand_ins[sites[-1]])
    assert error(best) < error(SkipPlan.model_validate(other))


def test_without_stand_ins_or_batches() -> None:
    model, data = network("mrla_b"), [batch("mrla_b")]
    analysis = analyze(model, data, progress=False)
    plan = make_plan(analysis, skip=0.3, planner="budget")
    assert refit_stand_ins(model, plan, data, progress=False) is plan
    affine = make_plan(analysis, skip=0.3, planner="budget", action="affine")
    with pytest.raises(DataError, match="no batches"):
        refit_stand_ins(model, affine, [], progress=False)

"""Pruning: a pruned model computes what the full one does with those retrievals left out."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ela_probe import discover, prune
from ela_probe.errors import PlanError
from ela_probe.models.mrla import MRLABase, Source
from ela_probe.pruning.plan import SkipPlan
from ela_probe.pruning.planners import make_plan
from ela_probe.sites import Action
from tests.support.identities import assert_same
from tests.support.networks import settled
from tests.support.pruning import analysed, zeroed


@pytest.mark.parametrize("name", ["mrla_b_resnet32", "mrla_l_resnet32"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_skipping_equals_zeroing_the_retrieval(name: str, share: float, images: Tensor) -> None:
    model, images = settled(name).double(), images.double()
    plan = make_plan(analysed(model), skip=share, planner="random", seed=5)
    assert plan.skipped
    pruned = prune(model, plan)
    with torch.no_grad():
        full = model(images)
        result = pruned(images)
        zeroed(model, plan.skipped)
        assert_same(result, model(images))
    assert (full - result).abs().max() > 1e-3


@settings(max_examples=10)
@given(st.integers(0, 2**31))
def test_dropping_equals_masking_the_source_too(seed: int) -> None:
    """A dropped site's source gets no weight from later sites: −inf before their softmax."""
    model = settled("mrla_b_resnet32").double()
    choose = random.Random(seed)
    stages = discover(model).stages
    actions: dict[str, Action] = {
        site.name: choose.choice(["keep", "skip", "drop"]) for s in stages for site in s.sites[1:]
    }
    plan = SkipPlan.for_actions(stages, actions)
    pruned = prune(model, plan)
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(2, 3, 16, 16, generator=generator, dtype=torch.float64)

    def mask(dropped: list[int]):
        def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            weights = out.clone()
            weights[..., dropped] = 0
            return weights / weights.sum(-1, keepdim=True)

        return hook

    for stage in stages:
        dropped = [t for t, s in enumerate(stage.sites) if actions.get(s.name) == "drop"]
        for t, site in enumerate(stage.sites):
            if actions.get(site.name, "keep") == "keep":
                earlier = [d for d in dropped if d <= t]
                model.get_submodule(site.module).register_forward_hook(mask(earlier))
    zeroed(model, plan.skipped)
    with torch.no_grad():
        assert_same(pruned(images), model(images))


def test_what_is_skipped_is_gone(mrla_b: nn.Module) -> None:
    stages = discover(mrla_b).stages
    name = "stages.1.2.retrieval"
    skipped = prune(mrla_b, SkipPlan.for_actions(stages, {name: "skip"}))
    source = skipped.get_submodule(name)
    assert type(source) is Source
    assert {n for n, _ in source.named_parameters()} == {"key.weight", "value.weight"}
    dropped = prune(mrla_b, SkipPlan.for_actions(stages, {name: "drop"}))
    assert not any(n.startswith(name) for n, _ in dropped.named_parameters())

    def sources(model: nn.Module) -> list[tuple[int, ...]]:
        return [stage.sizes for stage in discover(model).stages]

    assert sources(skipped)[1] == (1, 2, 4, 5)
    assert sources(dropped)[1] == (1, 2, 3, 4)


def test_every_parameter_of_a_pruned_model_is_used(mrla_b: nn.Module, images: Tensor) -> None:
    """As DistributedDataParallel demands; a source that nothing reads would have no gradient."""
    plan = make_plan(analysed(mrla_b), skip=0.4, planner="deepest")
    by_hand = SkipPlan.for_actions(discover(mrla_b).stages, dict.fromkeys(plan.skipped, "skip"))
    pruned = prune(mrla_b, by_hand).train()
    pruned(images).sum().backward()
    assert all(p.grad is not None for p in pruned.parameters())


def test_the_model_itself_stays_whole(mrla_b: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        before = mrla_b(images)
        prune(mrla_b, make_plan(analysed(mrla_b), skip=0.5))
        assert torch.equal(mrla_b(images), before)


def test_a_pruned_model_can_be_analysed_and_pruned_again(mrla_b: nn.Module) -> None:
    first = prune(mrla_b, make_plan(analysed(mrla_b), skip=0.4, planner="alternate"))
    again = analysed(first)
    second = prune(first, make_plan(again, skip=0.3))
    retrievals = [
        sum(isinstance(m, MRLABase) for m in x.modules()) for x in (mrla_b, first, second)
    ]
    assert retrievals == [15, 9, 6]


def test_a_plan_for_other_sites_is_refused_with_the_differences(mrla_b: nn.Module) -> None:
    plan = make_plan(analysed(mrla_b), skip=0.3)
    with pytest.raises(PlanError, match=r"15 sites; the model has 9.*stages\.0\.3.* not in the"):
        prune(settled("mrla_b_resnet20"), plan)
    with pytest.raises(PlanError, match="unrolled.*softmax"):
        prune(settled("mrla_l_resnet32"), plan)

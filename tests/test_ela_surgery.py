"""Surgery while training: pruning in steps, optimizers that follow, and changes that are undone."""

import copy
import random
from functools import partial
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from ela_probe import SkipPlan, create_model, discover, prune
from ela_probe.adapters.registry import Adapter, adapter_for
from ela_probe.errors import (
    PlanError,
)
from ela_probe.pruning.prune import actions_of
from ela_probe.sites import Action
from ela_probe.training.ela.surgery import (
    apply_undoable,
    parameter_names,
    prune_in_training,
    restore_parameter_order,
)
from tests.support.identities import assert_same
from tests.support.lookalikes import GateNetwork, SoftNetwork
from tests.support.lookalikes_stateful import GatedNetwork, NormNetwork, RefreshingNetwork
from tests.support.networks import network, settled, shapes, sites

FAMILIES = {
    "mrla_b": lambda: settled("mrla_b_resnet26"),
    "mrla_l": lambda: settled("mrla_l_resnet26"),
    "dia": lambda: settled("dia_resnet26"),
    "dla_b": lambda: settled("dla_b_resnet26"),
    "dla_l": lambda: settled("dla_l_resnet26"),
    "attnres": lambda: create_model("attnres2", dim=32).eval(),
    "published mrla_b": SoftNetwork,
    "published mrla_l": GateNetwork,
    "published kcla": NormNetwork,
    "published dia": GatedNetwork,
    "published dla_b": RefreshingNetwork,
}


def adapter_of(model: nn.Module) -> Adapter:
    adapter = adapter_for(model)
    assert adapter is not None
    return adapter


each_family = pytest.mark.parametrize("family", FAMILIES)


def steps_of(model: nn.Module, seed: int, count: int = 3) -> list[dict[str, Action]]:
    """Nested actions: at random every other site of each stage, and in the end all."""
    stages = discover(model).stages
    names = [site.name for stage in stages for site in stage.sites[1:]]
    random.Random(seed).shuffle(names)
    return [dict.fromkeys(names[: len(names) * n // count], "skip") for n in range(1, count + 1)]


@each_family
def test_pruning_in_steps_equals_pruning_at_once(family: str, images: Tensor) -> None:
    inputs = images.double() if family != "attnres" else torch.randint(0, 256, (2, 9))
    original = FAMILIES[family]().double()
    stages = discover(original).stages
    for seed in range(2):
        model = copy.deepcopy(original)
        done: dict[str, Action] = {}
        for actions in steps_of(original, seed):
            plan = SkipPlan.for_actions(stages, actions)
            wanted = actions_of(plan, stages)
            new = {name: a for name, a in wanted.items() if a != done.get(name, "keep")}
            prune_in_training(model, adapter_of(model), new)
            done |= new
            at_once = prune(original, plan)
            assert shapes(model) == shapes(at_once)
            with torch.no_grad():
                assert_same(model.eval()(inputs), at_once.eval()(inputs))


@each_family
def test_a_skip_for_a_moment_leaves_nothing_behind(family: str) -> None:
    model = FAMILIES[family]()
    before = {name: id(value) for name, value in model.named_parameters()}
    modules = [(name, id(part), list(vars(part))) for name, part in model.named_modules()]
    for actions in steps_of(model, 0):
        change = apply_undoable(model, partial(adapter_of(model).apply, model, actions))
        assert not set(sites(model)) & actions.keys()
        pruned = [(name, id(part)) for name, part in model.named_modules()]
        change.undo()
        assert {name: id(value) for name, value in model.named_parameters()} == before
        assert [(n, id(part), list(vars(part))) for n, part in model.named_modules()] == modules
        change.redo()
        assert [(name, id(part)) for name, part in model.named_modules()] == pruned
        change.undo()


def test_a_change_that_fails_is_undone() -> None:
    model: Any = network()
    before = shapes(model)

    def fails() -> None:
        model.stages[0][1].retrieval = None
        raise PlanError("no")

    with pytest.raises(PlanError):
        apply_undoable(model, fails)
    assert shapes(model) == before


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_optimizers_keep_the_state_of_what_is_left_bit_for_bit(kind: str) -> None:
    model = network()
    matrices = [(n, p) for n, p in model.named_parameters() if p.dim() > 1]
    vectors = [(n, p) for n, p in model.named_parameters() if p.dim() < 2]
    groups: list[Any] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = (
        torch.optim.SGD(groups, 0.1, momentum=0.9)
        if kind == "sgd"
        else torch.optim.AdamW(groups, 1e-3)
    )
    model(torch.randn(4, 3, 8, 8)).sum().backward()
    optimizer.step()
    names = {id(p): n for n, p in model.named_parameters()}
    before = {
        names[id(p)]: (p.clone(), {k: copy.deepcopy(v) for k, v in state.items()})
        for p, state in optimizer.state.items()
    }
    settings = [
        {k: v for k, v in g.items() if not k.startswith("param")} for g in optimizer.param_groups
    ]
    site = sites(model)[1]
    prune_in_training(model, adapter_of(model), {site: "skip"}, optimizers=[optimizer])
    left = dict(model.named_parameters())
    assert {f"{site}.query.weight", f"{site}.norm.weight"} <= names.keys() - left.keys() | {
        n for n in before if n not in left
    }
    assert len(optimizer.state) == len(left) < len(before)
    for name, parameter in left.items():
        value, state = before[name]
        assert torch.equal(parameter, value)
        assert optimizer.state[parameter].keys() == state.keys()
        for key, kept in state.items():
            assert torch.equal(optimizer.state[parameter][key], kept)
    after = [
        {k: v for k, v in g.items() if not k.startswith("param")} for g in optimizer.param_groups
    ]
    assert after == settings
    for group, originals in zip(optimizer.param_groups, (matrices, vectors), strict=True):
        kept = [n for n, _ in originals if n in left]
        assert group["param_names"] == kept
        assert [id(p) for p in group["params"]] == [id(left[n]) for n in kept]


def test_an_adapter_that_makes_new_parameters_is_refused_and_undone() -> None:
    model = network()
    before = shapes(model)

    class Careless:
        name = "careless"

        def apply(self, model: Any, actions: dict[str, Action]) -> None:
            model.stages[0][1].retrieval = nn.Linear(2, 2)

    with pytest.raises(PlanError, match="'careless' adds parameters"):
        prune_in_training(model, cast(Adapter, Careless()), {})
    assert shapes(model) == before


def test_a_saved_order_of_parameters_is_found_again() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    optimizer = torch.optim.SGD(reversed(list(model.parameters())), 0.1)
    names = parameter_names(model, [optimizer])
    assert names == [[["1.bias", "1.weight", "0.bias", "0.weight"]]]
    fresh = torch.optim.SGD(model.named_parameters(), 0.1)
    restore_parameter_order(model, [fresh], names)
    assert parameter_names(model, [fresh]) == names
    assert fresh.param_groups[0]["param_names"] == names[0][0]
    restore_parameter_order(model, [fresh], [[["0.weight"]]])  # of another optimizer: left alone
    assert parameter_names(model, [fresh]) == names

"""Damage in published DIA, whose cell gives the gates and reads them again in its next call."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ela_probe import analyze, discover, make_plan, prune
from ela_probe.adapters.dia import TAPS
from ela_probe.analysis.damage_probe import handovers_of
from ela_probe.analysis.handover_hooks import HandoverHooks
from ela_probe.errors import PlanError
from tests.support.damage_networks import batch, network
from tests.support.identities import assert_same
from tests.support.networks import hooks

NAME = "published dia"


def features(model: nn.Module, x: Tensor, moved: dict[tuple[int, int], Tensor]) -> Tensor:
    """What the stages compute; `moved` [samples] takes gates so far on their way to ones."""
    for s, stage in enumerate(model.stages):  # type: ignore[arg-type]
        for t, block in enumerate(stage.blocks):
            x, shortcut = block(x)
            if t == 0:
                h = c = torch.zeros_like(x.mean((2, 3)))[None]
            h, c = stage.memory(x.mean((2, 3)), (h, c))
            gates = h[-1]
            if (s, t) in moved:
                gates = gates + moved[s, t][:, None] * (1 - gates)
            x = (x * gates[..., None, None] + shortcut).relu()
    return x


def test_the_damage_is_that_of_the_gates_alone() -> None:
    """Not of what the next call reads; c is the derivative on the way from the gates to ones."""
    model, (inputs, labels) = network(NAME), batch(NAME)
    names = list(model.state_dict())
    analysis = analyze(model, [(inputs, labels)], progress=False)
    assert list(model.state_dict()) == names
    assert hooks(model) == []
    for s, part in enumerate(analysis.stages):
        assert part.damage is not None
        for t in range(len(part.stage.sites)):
            assert part.damage.actions(t) == ("skip",)
            factor = torch.zeros(len(inputs), dtype=torch.float64, requires_grad=True)
            model.features = lambda x, s=s, t=t, factor=factor: features(model, x, {(s, t): factor})  # type: ignore[assignment]
            losses = F.cross_entropy(model(inputs), labels, reduction="none")
            (c,) = torch.autograd.grad(losses.sum(), factor)
            del model.features
            found = part.damage.of(t, "skip")
            assert found is not None
            assert_same(torch.tensor(found.first, dtype=torch.float64), c.mean())
            assert_same(torch.tensor(found.mean, dtype=torch.float64), (c + c.square() / 2).mean())


def test_a_pruned_one_is_measured_again() -> None:
    model, data = network(NAME), [batch(NAME)]
    plan = make_plan(analyze(model, data, progress=False), skip=0.4)
    assert plan.origin.planner == "damage"
    assert set(plan.changes.values()) <= {"skip", "drop"}
    pruned = prune(model, plan)
    again = analyze(pruned, data, progress=False)
    left = [site.name for part in again.stages for site in part.stage.sites]
    assert left == [name for name, action in plan.actions.items() if action == "keep"]
    assert again.has_damage
    with pytest.raises(PlanError, match="needs an analysis with stand-ins"):
        make_plan(again, skip=0.4, action="affine")


def test_the_model_is_as_before_even_where_it_raises() -> None:
    model, (inputs, _) = network(NAME), batch(NAME)
    handovers = handovers_of(model, discover(model))
    with torch.no_grad():
        expected = model(inputs)
        with HandoverHooks(model, handovers, lambda *_: None):
            assert torch.equal(model(inputs), expected)
            with pytest.raises(RuntimeError):
                model(inputs[:, :2])
        assert torch.equal(model(inputs), expected)
    for module in model.modules():
        assert TAPS not in module._modules
        assert "forward" not in vars(module)
    assert hooks(model) == []

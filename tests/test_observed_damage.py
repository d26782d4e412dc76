"""Damage of a model that no adapter knows: each module that retrieves is replaced by its input."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ela_probe import Analysis, analyze, discover, make_plan, prune
from ela_probe.analysis.damage import StageDamage
from ela_probe.errors import PlanError
from tests.support.identities import assert_same
from tests.support.networks import hooks

WIDTH, DEPTH, CLASSES = 6, 4, 3


class Retrieval(nn.Module):
    """x + scale · Σ w_s source_s; `gates` [samples] multiplies what is added, for tests."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.query, self.scale = nn.Linear(WIDTH, WIDTH), scale
        self.gates: Tensor | None = None

    def forward(self, x: Tensor, sources: list[Tensor]) -> Tensor:
        stacked = torch.stack(sources, dim=1)  # [samples, sources, width]
        weights = F.softmax((stacked * self.query(x)[:, None]).sum(-1), dim=-1)
        added = self.scale * (weights[..., None] * stacked).sum(1)
        return x + (added if self.gates is None else self.gates[:, None] * added)


class Layers(nn.Module):
    """Mixes, then retrieves from all mixed values so far; logits by a linear layer."""

    def __init__(self, make: Callable[[], nn.Module] = Retrieval) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.mixes = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH))
            self.retrievals = nn.ModuleList(make() for _ in range(DEPTH))
            self.head = nn.Linear(WIDTH, CLASSES)
        self.double().eval()

    def step(self, t: int, x: Tensor, sources: list[Tensor]) -> Tensor:
        result: Tensor = self.retrievals[t](x, sources)
        return result

    def logits(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(x)
        return result

    def forward(self, x: Tensor) -> Any:
        sources: list[Tensor] = []
        for t, mix in enumerate(self.mixes):
            x = mix(x).tanh()
            sources.append(x)
            x = self.step(t, x, sources)
        return self.logits(x)


def batch(samples: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(samples, WIDTH, generator=generator).double()
    return images, torch.randint(0, CLASSES, (samples,), generator=generator)


def damage_of(analysis: Analysis) -> StageDamage:
    (part,) = analysis.stages
    assert part.damage is not None, analysis.provenance.notes
    return part.damage


def notes(model: nn.Module, data: Any = None) -> str:
    return " ".join(analyze(model, data or [batch()], progress=False).provenance.notes)


def by_gates(model: Layers, t: int) -> Tensor:
    """⟨g, x − y⟩ of every sample: less the derivative by a factor of what is added."""
    inputs, labels = batch()
    part = model.retrievals[t]
    part.gates = torch.ones(len(inputs), dtype=torch.float64, requires_grad=True)
    model.requires_grad_(False)
    losses = F.cross_entropy(model(inputs), labels, reduction="none")
    (gradient,) = torch.autograd.grad(losses.sum(), part.gates)
    part.gates = None  # type: ignore[assignment]
    model.requires_grad_(True)
    return -gradient


@pytest.mark.parametrize("step", [2, 7])
def test_the_damage_is_that_of_the_gradient_by_hand(step: int) -> None:
    model, (inputs, labels) = Layers(), batch()
    batches = list(zip(inputs.split(step), labels.split(step), strict=True))
    analysis = analyze(model, batches, progress=False)
    assert discover(model, inputs).adapter.name == "observed"
    damage = damage_of(analysis)
    for t in range(DEPTH):
        assert damage.actions(t) == ("skip",)
        c = by_gates(model, t)
        found = damage.of(t, "skip")
        assert found is not None
        for mine, hand in (
            (found.first, c.mean()),
            (found.mean, (c + c.square() / 2).mean()),
            (found.se, (c + c.square() / 2).std() / 7**0.5),
        ):
            assert_same(torch.tensor(mine, dtype=torch.float64), hand)
    assert any("replacing each module that retrieves by its input" in n
               for n in analysis.provenance.notes)  # fmt: skip
    assert hooks(model) == []
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_for_a_small_retrieval_the_prediction_is_the_change_of_the_loss() -> None:
    errors = []
    for scale in (1e-2, 1e-3, 1e-4):
        model, (inputs, labels) = Layers(lambda scale=scale: Retrieval(scale)), batch()  # type: ignore[misc]
        predicted = damage_of(analyze(model, [batch()], progress=False)).of(2, "skip")
        assert predicted is not None
        with torch.no_grad():
            before = F.cross_entropy(model(inputs), labels)
            model.retrievals[2].forward = lambda x, sources: x
            change = float(F.cross_entropy(model(inputs), labels) - before)
        errors.append(abs(predicted.mean / change - 1))
    assert errors[0] < 0.2
    assert errors[2] < errors[1] / 5 < errors[0] / 25


def test_the_damage_plans_and_pruning_stays_refused() -> None:
    model = Layers()
    analysis = analyze(model, [batch()], progress=False)
    damage = damage_of(analysis)
    plan = make_plan(analysis, skip=0.25)
    assert plan.origin.planner == "damage"
    least = min(range(1, DEPTH), key=lambda t: damage.of(t, "skip").mean)
    assert plan.skipped == [f"retrievals.{least}"]
    with pytest.raises(PlanError, match="no adapter knows how to prune"):
        prune(model, plan)


class OfSoftmax(Retrieval):
    """The softmax is a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.normalise = nn.Softmax(dim=-1)

    def forward(self, x: Tensor, sources: list[Tensor]) -> Tensor:
        stacked = torch.stack(sources, dim=1)
        weights = self.normalise((stacked * self.query(x)[:, None]).sum(-1))
        added = self.scale * (weights[..., None] * stacked).sum(1)
        return x + (added if self.gates is None else self.gates[:, None] * added)


class OverwritesLater(Layers):
    """What a module took and gave is overwritten after it ran."""

    def step(self, t: int, x: Tensor, sources: list[Tensor]) -> Tensor:
        given = x.clone()
        y = super().step(t, given, sources)
        given.zero_()
        return y.mul_(0.5)


class InsideATuple(Retrieval):
    def forward(self, x: Tensor, sources: list[Tensor]) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x, sources), torch.ones(3)


class Tuples(Layers):
    def step(self, t: int, x: Tensor, sources: list[Tensor]) -> Tensor:
        return super().step(t, x, sources)[0]


@pytest.mark.parametrize(
    "model",
    [Layers(OfSoftmax), Tuples(InsideATuple), OverwritesLater()],
    ids=["nn.Softmax", "tuple", "overwritten later"],
)
def test_other_ways_to_write_it(model: Layers) -> None:
    damage = damage_of(analyze(model, [batch()], progress=False))
    for t in range(DEPTH):
        c = by_gates(model, t)
        found = damage.of(t, "skip")
        assert found is not None
        assert_same(torch.tensor(found.first, dtype=torch.float64), c.mean())


class ListOnly(Retrieval):
    def forward(self, sources: list[Tensor]) -> Tensor:  # type: ignore[override]
        return super().forward(sources[-1], sources)


class GivesAList(Layers):
    def step(self, t: int, x: Tensor, sources: list[Tensor]) -> Tensor:
        result: Tensor = self.retrievals[t](sources)
        return result


class OneForAll(Layers):
    def step(self, t: int, x: Tensor, sources: list[Tensor]) -> Tensor:
        return super().step(0, x, sources)


class Overwriting(Retrieval):
    def forward(self, x: Tensor, sources: list[Tensor]) -> Tensor:
        return x.copy_(super().forward(x, sources))


class CopiesFirst(Layers):
    def step(self, t: int, x: Tensor, sources: list[Tensor]) -> Tensor:
        return super().step(t, x.clone(), sources)


class SamplesSecond(Retrieval):
    def forward(self, x: Tensor, sources: list[Tensor]) -> Tensor:
        return super().forward(x.T, sources).T


class Turned(Layers):
    def step(self, t: int, x: Tensor, sources: list[Tensor]) -> Tensor:
        return super().step(t, x.T, sources).T


class Detaching(Layers):
    def step(self, t: int, x: Tensor, sources: list[Tensor]) -> Tensor:
        return super().step(t, x, sources).detach()


class Features(Layers):
    def logits(self, x: Tensor) -> Any:
        return {"features": x}


class InPlaceSoftmax(Retrieval):
    """It runs, but its backward pass can't."""

    def forward(self, x: Tensor, sources: list[Tensor]) -> Tensor:
        stacked = torch.stack(sources, dim=1)
        weights = F.softmax((stacked * self.query(x)[:, None]).sum(-1), dim=-1)
        added = (weights[..., None] * stacked).sum(1)
        weights.zero_()
        return x + added


UNKNOWN: dict[str, tuple[nn.Module, str]] = {
    "a list": (GivesAList(ListOnly), "takes no tensor of the shape [7, 6] of its output"),
    "one module for all": (OneForAll(), "retrievals.0 runs 4 times in a pass"),
    "overwritten": (CopiesFirst(Overwriting), "retrievals.1 overwrites its input"),
    "samples second": (Turned(SamplesSecond), "does not have the samples on its first axis"),
    "no gradient": (Detaching(), "no gradient of the logits comes to retrievals.1"),
    "no backward pass": (Layers(InPlaceSoftmax), "can't be differentiated"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_cannot_be_told_apart_has_no_damage_and_a_line_says_why(case: str) -> None:
    model, reason = UNKNOWN[case]
    analysis = analyze(model, [batch()], progress=False)
    assert not analysis.has_damage
    (note,) = analysis.provenance.notes
    assert note.startswith("damage was not measured: the model was only observed, and ")
    assert reason in note
    assert make_plan(analysis, skip=0.25).origin.planner == "budget"
    assert hooks(model) == []
    assert analysis.provenance.loss is not None


def test_without_logits_or_labels_no_damage() -> None:
    inputs, _ = batch()
    assert "the model returns no logits" in notes(Features())
    assert "damage" not in notes(Layers(), [inputs])
    left_out = analyze(Layers(), [batch()], damage=False, progress=False)
    assert not left_out.has_damage
    assert left_out.provenance.notes == ()

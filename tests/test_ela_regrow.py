"""A removed retrieval comes back, with its parameters, where its absence costs more by now."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ela_probe import ELA, SkipPlan, prune
from ela_probe.adapters.registry import adapter_for
from ela_probe.errors import CheckpointError, OptionError
from ela_probe.models.stand_in import StandIn
from ela_probe.pruning.plan import encode_stand_in
from ela_probe.sites import Action
from ela_probe.training.ela.clock import Clock
from ela_probe.training.ela.damage import StandInGradients
from ela_probe.training.ela.gradual_pruning import GradualPruning
from ela_probe.training.ela.network import Network
from tests.support.networks import network, shapes
from tests.support.training import Classifier, fitted, resumed_exactly

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*:FutureWarning")


def plan_of(model: nn.Module, sites: set[str]) -> SkipPlan:
    """The plan that puts stand-ins with a scale of 2 at these sites."""
    adapter = adapter_for(model)
    assert adapter is not None
    channels: dict[str, Any] = {s: model.get_submodule(s).norm.num_features for s in sites}
    figures = {
        site: {"stand_in": encode_stand_in(np.stack([np.ones(c), np.zeros(c)]).astype("f4"))}
        for site, c in channels.items()
    }
    actions: dict[str, Action] = dict.fromkeys(sites, "affine")
    return SkipPlan.for_actions(adapter.stages(model), actions, figures=figures)


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor) -> None:
    optimizer.zero_grad()
    model(images).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_what_comes_back_is_what_was_removed_and_the_rest_goes_on(
    kind: str, images: Tensor
) -> None:
    model = network()
    whole = {name: (p, p.detach().clone()) for name, p in model.named_parameters()}
    build = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[kind]
    options = {"momentum": 0.9} if kind == "sgd" else {}
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = build(
        [{"params": [p for p in model.parameters() if p.dim() > 1]}, {"params": vectors}],
        lr=0.01, **options,
    )  # fmt: skip
    pruning = Network(model, model, decay=0.5, keep_removed=True)
    last, middle = "stages.1.2.retrieval", "stages.1.1.retrieval"
    first, both = plan_of(network(), {middle}), plan_of(network(), {middle, last})
    stepped(model, optimizer, images)
    pruning.prune_to(both, [optimizer])
    stepped(model, optimizer, images)
    removed = pruning.removed_tensors()
    assert {name.rsplit(".", 2)[0] for name in removed if "query" in name} == {middle, last}
    trained = pruning.stand_ins[middle]
    momentum = {id(p): dict(state) for p, state in optimizer.state.items()}

    pruning.prune_to(first, [optimizer])
    assert shapes(model) == shapes(prune(network(), first))
    assert pruning.stand_ins.keys() == {middle}
    assert pruning.stand_ins[middle].scale is trained.scale
    now = dict(model.named_parameters())
    for name, parameter in now.items():
        if name.startswith(last):
            assert parameter is whole[name][0]
            assert not torch.equal(parameter, whole[name][1])  # it had trained before
            assert name not in removed or torch.equal(parameter, removed[name])
        elif parameter in optimizer.state:
            before, after = momentum[id(parameter)], optimizer.state[parameter]
            assert before.keys() == after.keys()
            assert all(after[key] is value for key, value in before.items())
    groups = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
    assert sorted(itertools.chain(*groups)) == sorted(id(p) for p in now.values())
    for name, parameter in now.items():
        if name.startswith(last):
            assert id(parameter) in groups[0 if parameter.dim() > 1 else 1], name
    stepped(model, optimizer, images)
    assert trained.scale in optimizer.state


def test_what_is_forgotten_is_kept_nowhere() -> None:
    model = network()
    pruning = Network(model, model, decay=0.5, keep_removed=True)
    pruning.prune_to(plan_of(network(), {"stages.1.2.retrieval"}))
    assert pruning.removed_tensors()
    pruning.forget_removed()
    assert not pruning.removed_tensors()


def test_the_gradient_of_a_stand_in_is_that_of_each_sample() -> None:
    torch.manual_seed(0)
    stand_in = StandIn(torch.randn(3, 4).double(), terms=2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4 * 9, 3)).double()
    terms = torch.randn(2, 5, 4, 3, 3).double()
    labels = torch.tensor([0, 1, 2, 0, 1])
    with StandInGradients({"site": stand_in}, clock=Clock(torch.device("cpu"))) as gradients:
        for part in (slice(0, 3), slice(3, 5)):
            loss = F.cross_entropy(model(stand_in(*terms[:, part].requires_grad_())), labels[part])
            (loss / 4).backward()
            gradients.add(4.0)
    norms = []
    for index in range(5):
        one = slice(index, index + 1)
        loss = F.cross_entropy(model(stand_in(*terms[:, one])), labels[one])
        found = torch.autograd.grad(loss, list(stand_in.parameters()))
        norms.append(torch.cat([g.flatten() for g in found]).norm())
    assert gradients.compute()["site"] == pytest.approx(float(sum(norms)) / 5, rel=1e-12)


def test_a_site_comes_back_when_its_absence_costs_more_than_an_epoch_may() -> None:
    ela = ELA(loss=1e6, warmup=1, every=1, regrow=True)
    fitted(Classifier(), ela, epochs=3)
    pruning = ela._pruning
    assert isinstance(pruning, GradualPruning)
    assert ela.plan is not None
    costly = max(
        (estimate.mean, part.stage.sites[t].name)
        for part in pruning.analysis.stages
        for t in range(len(part.stage.sites))
        if part.damage is not None
        and (estimate := part.damage.of(t, "affine")) is not None
        and part.stage.sites[t].name in pruning.removed
    )
    assert costly[0] > 0
    pruning.config = pruning.config.model_copy(update={"loss": costly[0]})
    found = pruning.analysis.stages
    removed = pruning.removed
    for gradient, back in ((1.0, False), (1.0, False), (100.0, True)):
        pruning.step(found, 1, gradients={costly[1]: gradient})
        assert (costly[1] not in pruning.removed) == back
    assert pruning.removed == removed - {costly[1]}


def test_a_run_in_which_sites_come_back_resumes_exactly(tmp_path: Path) -> None:
    seen: list[frozenset[str]] = []
    original = GradualPruning.step

    def step(self: GradualPruning, *arguments: Any, **options: Any) -> bool:
        result = original(self, *arguments, **options)
        seen.append(self.removed)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GradualPruning, "step", step)
        resumed_exactly(
            tmp_path, "sgd", loss=0.02, warmup=1, freeze=5, regrow=True, decay=0.0, every=1
        )
    assert any(before - after for before, after in itertools.pairwise(seen[:5]))


def test_a_state_that_an_older_version_wrote_loads() -> None:
    state = ELA(loss=0.1, warmup=1).state_dict()
    del state["settings"]["regrow"]
    ELA(loss=0.1, warmup=1).rebuild(network(), state)
    with pytest.raises(CheckpointError, match="regrow False then, True now"):
        ELA(loss=0.1, warmup=1, regrow=True).rebuild(network(), state)


@pytest.mark.parametrize(
    "settings",
    [{"skip": 0.5, "regrow": True}, {"loss": 0.1, "action": "skip", "regrow": True}],
)
def test_settings_without_stand_ins_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="regrow needs loss or time, and action=affine"):
        ELA(**settings)

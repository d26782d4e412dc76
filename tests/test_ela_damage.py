"""ELA by damage, and with stand-ins: what the gradients of training say, and what it leaves."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ela_probe import ELA, SkipPlan, prune
from ela_probe.adapters.dia import TAPS
from ela_probe.analysis.analyze import analyze
from ela_probe.analysis.damage import MEASURED
from ela_probe.errors import PlanError
from ela_probe.models.stand_in import StandIn
from tests.support.lookalikes_stateful import GatedNetwork
from tests.support.networks import network, shapes, sites
from tests.support.training import Classifier, Watch, batches, fitted, resumed_exactly

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*:FutureWarning")


def stand_ins(model: nn.Module) -> dict[str, StandIn]:
    return {name: part for name, part in model.named_modules() if isinstance(part, StandIn)}


class InEvalMode(Classifier):
    """Its batch norms don't let samples read each other, and its weights stay."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.net.eval()
        images, labels = batch
        return super().training_step((images.double(), labels), batch_idx)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.0)


def freeze_the_first_stage(net: Any) -> None:
    for part in (net.conv1, net.bn1, net.stages[0]):
        part.requires_grad_(False)


@pytest.mark.parametrize(("accumulated", "frozen"), [(1, False), (2, False), (1, True)])
def test_the_gradients_of_training_say_what_a_probe_does(accumulated: int, frozen: bool) -> None:
    module = InEvalMode(network().double())
    if frozen:
        freeze_the_first_stage(module.net)
    ela = ELA(skip=0.45, warmup=2, ramp=1, every=1, planner="damage", action="affine")
    fitted(module, ela, epochs=3, accumulate_grad_batches=accumulated)
    images = [(x.double(), y) for x, y in batches()]
    expected = analyze(network().double(), images, progress=False)
    for part, whole in zip(ela.analysis.stages, expected.stages, strict=True):
        assert part.damage is not None
        assert whole.damage is not None
        assert part.damage.samples == whole.damage.samples == 32
        for action in ("skip", "recur"):
            own = MEASURED.index(action)
            np.testing.assert_allclose(
                part.damage.sums[:, own], whole.damage.sums[:, own], rtol=1e-9, atol=1e-12
            )
        np.testing.assert_allclose(part.damage.norms, whole.damage.norms, rtol=1e-9)
        for mine, fit in zip(part.damage.stand_ins, whole.damage.stand_ins, strict=True):
            assert mine is not None
            assert fit is not None
            np.testing.assert_allclose(mine, fit, rtol=1e-5, atol=1e-6)  # they are float32


class RemembersGradients(Classifier):
    """Keeps the gradients of its first step."""

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.global_step == 0:
            self.first = {
                name: None if p.grad is None else p.grad.clone()
                for name, p in self.named_parameters()
            }


def test_measuring_in_a_frozen_stage_leaves_the_gradients_as_they_are() -> None:
    found = []
    for callbacks in ([], [ELA(skip=0.45, warmup=1, ramp=1, every=1, planner="damage")]):
        module = RemembersGradients()
        freeze_the_first_stage(module.net)
        fitted(module, *callbacks, loader=batches(1), epochs=2)
        found.append(module.first)
    alone, probed = found
    frozen = {name for name, gradient in alone.items() if gradient is None}
    assert frozen
    assert frozen == {name for name, gradient in probed.items() if gradient is None}
    for name in alone.keys() - frozen:
        torch.testing.assert_close(probed[name], alone[name], rtol=0, atol=0, msg=name)


def test_what_no_gradient_comes_to_is_not_measured_and_not_removed() -> None:
    module = Classifier()
    for block in module.net.get_submodule("stages.0").children():
        block.forward = torch.no_grad()(block.forward)
    ela = ELA(skip=0.45, warmup=1, ramp=1, every=1, planner="damage")
    fitted(module, ela, epochs=2)
    whole, *others = ela.analysis.stages
    assert whole.damage is None
    for part in others:
        assert part.damage is not None
        assert np.isfinite(part.damage.sums[:, MEASURED.index("skip")]).all()
    assert ela.plan is not None
    removed = ela.plan.skipped
    assert len(removed) == 4
    assert not any(name.startswith("stages.0.") for name in removed)


@pytest.mark.parametrize(
    "settings",
    [
        {"planner": "damage", "action": "affine"},
        {"planner": "damage"},
        {"planner": "score", "action": "affine"},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_stand_ins_take_the_place_of_retrievals_and_train_on(
    tmp_path: Path, settings: dict[str, Any], kind: str
) -> None:
    module, watch = Classifier(kind=kind), Watch()
    ela = ELA(skip=0.45, warmup=2, ramp=2, path=tmp_path / "plan.json", **settings)
    fitted(module, ela, watch)
    assert [len(names) for names in watch.sites] == [9, 9, 7, 5, 5]
    assert all(watch.known)
    plan = SkipPlan.load(tmp_path / "plan.json")
    assert plan == ela.plan
    assert plan.origin.planner == settings["planner"]
    assert shapes(prune(network(), plan)) == shapes(module.net)
    pruned, affine = prune(network(), plan), settings.get("action") == "affine"
    assert len(stand_ins(module.net)) == (4 if affine else 0)
    for name, stand_in in stand_ins(module.net).items():
        start = stand_ins(pruned)[name]
        assert not torch.equal(stand_in.scale, start.scale)
        assert not torch.equal(stand_in.shift, start.shift)  # type: ignore[arg-type]


def test_the_least_damage_is_removed() -> None:
    module = Classifier()
    ela = ELA(skip=0.45, warmup=1, ramp=1, every=1, planner="damage")
    fitted(module, ela, epochs=2)
    assert ela.plan is not None
    chosen = [site.damage.mean for stage in ela.plan.stages for site in stage.sites if site.damage]
    damages = [
        estimate.mean
        for part in ela.analysis.stages
        if part.damage is not None
        for t in range(1, len(part.stage.sites))
        if (estimate := part.damage.of(t, "skip")) is not None
    ]
    assert sorted(chosen) == pytest.approx(sorted(damages)[:4])


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_lightnings_own_checkpoints_resume_exactly(tmp_path: Path, kind: str) -> None:
    whole, _ = resumed_exactly(
        tmp_path, kind, skip=0.5, warmup=1, ramp=3, planner="damage", action="affine"
    )
    assert stand_ins(whole.net)


def test_an_adapter_that_does_not_say_what_a_site_hands_on_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ela_probe.adapters.resnet import ResNetAdapter

    monkeypatch.setattr(ResNetAdapter, "handovers", lambda *_: {})
    with pytest.raises(PlanError, match="does not say what a site hands on"):
        fitted(Classifier(), ELA(skip=0.45, warmup=1, ramp=1, planner="damage"), epochs=2)


def test_published_dia_is_pruned_by_the_damage_of_its_gates() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Classifier(GatedNetwork())
    names, before = list(module.net.state_dict()), sites(module.net)
    ela = ELA(skip=0.5, warmup=1, ramp=1, every=1, planner="damage")
    seen: list[list[str]] = []

    class Names(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
            seen.append(list(pl_module.net.state_dict()))

    fitted(module, ela, Names(), epochs=2)
    assert seen[:4] == [names] * 4  # while damage was measured
    assert (len(before), len(sites(module.net))) == (12, 6)
    assert ela.plan is not None
    assert ela.plan.origin.planner == "damage"
    assert not any(TAPS in name for name, _ in module.net.named_modules())
    with pytest.raises(PlanError, match="the adapter dia has no stand-ins"):
        fitted(Classifier(GatedNetwork()), ELA(skip=0.5, warmup=1, ramp=1, action="affine"))


def test_the_averages_of_damage_are_those_of_its_terms() -> None:
    from ela_probe.training.ela.moving_averages import StageAverage

    found = analyze(network(), batches(), progress=False).stages[0]
    assert found.damage is not None
    more = replace(found, damage=replace(found.damage, sums=3 * found.damage.sums))
    average = StageAverage(found.stage, decay=0.75)
    average.update(found)
    average.update(more)
    damage = average.analysis().damage
    assert damage is not None
    np.testing.assert_allclose(damage.sums, (0.75 + 0.25 * 3) * found.damage.sums)
    again = StageAverage(found.stage, decay=0.75)
    again.load_state_dict(average.state_dict())
    loaded = again.analysis().damage
    assert loaded is not None
    np.testing.assert_array_equal(loaded.sums, damage.sums)
    for one, other in zip(loaded.stand_ins, damage.stand_ins, strict=True):
        np.testing.assert_array_equal(one, other)

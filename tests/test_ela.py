"""ELA training: what it removes and when, who follows, what is left alone, and resumption."""

import copy
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from ela_probe_cli import main
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ela_probe import ELA, SkipPlan, create_model, discover, load_checkpoint, prune
from ela_probe.adapters.registry import adapter_for
from ela_probe.checkpoint import read_checkpoint
from ela_probe.data.opening import open_data
from ela_probe.errors import (
    AnalysisError,
    CheckpointError,
    ModelError,
    OptionError,
    PlanError,
)
from ela_probe.models.attention_mechanisms import mrla_b
from ela_probe.models.registry import ModelSpec
from ela_probe.models.resnet import Layout, ResNet
from ela_probe.pipeline import train
from ela_probe.pruning.prune import actions_of
from ela_probe.training.config import TrainConfig
from ela_probe.training.ela.config import ELAConfig
from ela_probe.training.ela.surgery import (
    carry_out,
    changed,
    parameter_names,
    restore_parameter_order,
)
from ela_probe.training.fitting import TrainingInterrupted
from tests.conftest import settled
from tests.lookalikes import GateNetwork, SoftNetwork
from tests.lookalikes_stateful import GatedNetwork, NormNetwork, RefreshingNetwork
from tests.test_cli import run as command
from tests.test_cli import write_images

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
each_family = pytest.mark.parametrize("family", FAMILIES)


def network(name: str = "mrla_b_resnet20") -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return create_model(name, num_classes=3)


def tiny() -> nn.Module:
    """One stage of four sites."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ResNet(Layout("small", (4,), (16,), "basic"), mrla_b(), num_classes=3)


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def sites(model: nn.Module) -> list[str]:
    return [site.name for stage in discover(model).stages for site in stage.sites]


def same(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return list(ours) == list(theirs) and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )


def hooks(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


# Surgery


def steps_of(model: nn.Module, seed: int, count: int = 3) -> list[dict[str, str]]:
    """Nested actions: at random every other site of each stage, and in the end all."""
    stages = discover(model).stages
    names = [site.name for stage in stages for site in stage.sites[1:]]
    random.Random(seed).shuffle(names)
    return [dict.fromkeys(names[: len(names) * n // count], "skip") for n in range(1, count + 1)]


@each_family
def test_pruning_in_steps_equals_pruning_at_once(family: str, images: Tensor) -> None:
    inputs = images if family != "attnres" else torch.randint(0, 256, (2, 9))
    original = FAMILIES[family]()
    stages = discover(original).stages
    for seed in range(2):
        model, done = copy.deepcopy(original), {}
        for actions in steps_of(original, seed):
            plan = SkipPlan.for_actions(stages, actions)
            wanted = actions_of(plan, stages)
            new = {name: a for name, a in wanted.items() if a != done.get(name, "keep")}
            carry_out(model, adapter_for(model), new)
            done |= new
            at_once = prune(original, plan)
            assert shapes(model) == shapes(at_once)
            with torch.no_grad():
                torch.testing.assert_close(model.eval()(inputs), at_once.eval()(inputs))


@each_family
def test_a_skip_for_a_moment_leaves_nothing_behind(family: str) -> None:
    model = FAMILIES[family]()
    before = {name: id(value) for name, value in model.named_parameters()}
    modules = [(name, id(part), list(vars(part))) for name, part in model.named_modules()]
    for actions in steps_of(model, 0):
        undo = changed(model, lambda a=actions: adapter_for(model).apply(model, a))
        assert not set(sites(model)) & actions.keys()
        undo()
        assert {name: id(value) for name, value in model.named_parameters()} == before
        assert [(n, id(part), list(vars(part))) for n, part in model.named_modules()] == modules


def test_a_change_that_fails_is_undone() -> None:
    model = network()
    before = shapes(model)

    def fails() -> None:
        model.stages[0][1].retrieval = None
        raise PlanError("no")

    with pytest.raises(PlanError):
        changed(model, fails)
    assert shapes(model) == before


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_optimizers_keep_the_state_of_what_is_left_bit_for_bit(kind: str) -> None:
    model = network()
    matrices = [(n, p) for n, p in model.named_parameters() if p.dim() > 1]
    vectors = [(n, p) for n, p in model.named_parameters() if p.dim() < 2]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
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
    carry_out(model, adapter_for(model), {site: "skip"}, optimizers=[optimizer])
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

        def apply(self, model: nn.Module, actions: dict[str, str]) -> None:
            model.stages[0][1].retrieval = nn.Linear(2, 2)

    with pytest.raises(PlanError, match="'careless' makes new parameters"):
        carry_out(model, Careless(), {})
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


# In anyone's Trainer


class Classifier(pl.LightningModule):
    """A user's module, which knows nothing of ELA."""

    def __init__(self, net: nn.Module | None = None, *, kind: str = "sgd") -> None:
        super().__init__()
        self.net = network() if net is None else net
        self.kind = kind
        self.losses: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self.net(images), labels)
        self.losses.append(float(loss))
        return loss

    def configure_optimizers(self) -> Any:
        if self.kind == "adamw":
            return torch.optim.AdamW(self.parameters(), 1e-3)
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9, weight_decay=1e-4)


def batches(count: int = 4, size: int = 8) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count * size, 3, 8, 8, generator=generator)
    labels = torch.randint(0, 3, (count * size,), generator=generator)
    return DataLoader(TensorDataset(images, labels), size)


class Watch(pl.Callback):
    """After ELA: which sites there were in each epoch, and what the optimizer held."""

    def __init__(self) -> None:
        self.sites: list[list[str]] = []
        self.known: list[bool] = []
        self.logged: list[dict[str, float]] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.sites.append(sites(getattr(pl_module.net, "_orig_mod", pl_module.net)))
        held = {id(p) for o in trainer.optimizers for g in o.param_groups for p in g["params"]}
        self.known.append(held == {id(p) for p in pl_module.parameters()})

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.logged.append({k: float(v) for k, v in trainer.callback_metrics.items()})


def fitted(
    module: pl.LightningModule,
    *callbacks: pl.Callback,
    epochs: int = 5,
    loader: DataLoader | None = None,
    ckpt_path: Path | None = None,
    **options: Any,
) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=list(callbacks),
        **{"enable_checkpointing": False} | options,
    )  # fmt: skip
    trainer.fit(module, batches() if loader is None else loader, ckpt_path=ckpt_path)
    return trainer


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*:FutureWarning")


@pytest.mark.parametrize("action", ["skip", "drop", "recur"])
def test_in_anyones_trainer_it_warms_up_ramps_and_leaves_a_smaller_network(
    tmp_path: Path, action: str
) -> None:
    module, watch = Classifier(), Watch()
    original = copy.deepcopy(module.net)
    ela = ELA(skip=0.45, warmup=2, ramp=2, action=action, path=tmp_path / "plan.json")
    fitted(module, ela, watch)
    assert [len(names) for names in watch.sites] == [9, 9, 7, 5, 5]
    for earlier, later in itertools.pairwise(watch.sites):
        assert set(later) <= set(earlier)
    for stage in range(3):
        assert f"stages.{stage}.0.retrieval" in watch.sites[-1]
    assert all(watch.known)
    assert [m["ela_skipped"] for m in watch.logged] == pytest.approx([0, 0, 2 / 9, 4 / 9, 4 / 9])
    assert all(m["ela_ebqm_seconds"] >= 0 for m in watch.logged)
    plan = SkipPlan.load(tmp_path / "plan.json")
    assert plan == ela.plan
    assert shapes(prune(original, plan)) == shapes(module.net)
    assert list(prune(original, plan).state_dict()) == list(module.net.state_dict())
    assert ela.share == pytest.approx(4 / 9)
    assert (plan.origin.epoch, plan.origin.planner, plan.origin.split) == (3, "score", "train")
    assert hooks(module) == 0
    assert "on_load_checkpoint" not in vars(module)
    assert 0 < ela.seconds < ela.trained
    assert np.isfinite(module.losses).all()


@pytest.mark.parametrize("planner", ["score", "budget"])
def test_the_guards_hold(planner: str) -> None:
    module = Classifier()
    fitted(
        module, ELA(skip=0.34, warmup=1, ramp=1, max_run=1, min_keep=2, planner=planner), epochs=2
    )
    left = sites(module.net)
    assert len(left) == 6
    assert all(sum(name.startswith(f"stages.{s}.") for name in left) == 2 for s in range(3))


def test_probing_changes_nothing_of_the_training() -> None:
    plain, probed = Classifier(), Classifier()
    fitted(plain, epochs=3)
    fitted(probed, ELA(skip=0.3, warmup=3, ramp=1, every=1), epochs=4)
    assert probed.losses[: len(plain.losses)] == plain.losses


def test_the_averages_are_those_of_a_probe_over_the_same_passes() -> None:
    from ela_probe import AttentionProbe

    class Check(pl.Callback):
        def __init__(self) -> None:
            self.found: list[np.ndarray] = []

        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            self.probe = AttentionProbe(pl_module.net).__enter__()

        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            self.probe.__exit__(None)
            self.found.append(self.probe.metrics["stages.1"].compute()["kl"].numpy())

    check, ela = Check(), ELA(skip=0.3, warmup=2, ramp=1, every=1, decay=0.6)
    module = Classifier()
    fitted(module, check, ela, epochs=3)
    by_hand = 0.6 * check.found[0] + 0.4 * check.found[1]
    np.testing.assert_allclose(
        ela.analysis.stage("stages.1").divergences["kl"], by_hand, rtol=1e-12
    )


def test_once_the_plan_is_final_nothing_is_probed() -> None:
    class Forbidden(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
            if trainer.current_epoch >= 1:
                assert hooks(pl_module) == 0

    ela = ELA(skip=0.3, warmup=1, ramp=3, freeze=1, every=1)
    module = Classifier()
    fitted(module, ela, Forbidden(), epochs=3)
    assert ela.share == pytest.approx(1 / 9)
    assert ela.plan.origin.epoch == 1


class Steps(pl.Callback):
    """Which sites each step ran with, as its backward pass ended."""

    def __init__(self) -> None:
        self.ran: dict[tuple[int, int], list[str]] = {}
        self.between: set[int] = set()

    def on_after_backward(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.ran[trainer.current_epoch, trainer.global_step] = sites(pl_module.net)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.between.add(len(sites(pl_module.net)))


def test_stochastic_skipping_is_drawn_by_its_seed_and_ends_with_the_freeze() -> None:
    runs = []
    for seed in (0, 0, 1):
        steps, module = Steps(), Classifier(kind="adamw")
        ela = ELA(skip=0.5, warmup=1, ramp=2, freeze=3, stochastic=True, every=4, seed=seed)
        fitted(module, ela, steps, epochs=4)
        runs.append((steps, module, ela))
    (first, one, ela), (again, two, _), (other, _, _) = runs
    assert first.ran == again.ran
    assert same(one.net, two.net)
    assert first.ran != other.ran
    counts = [[len(s) for (epoch, _), s in first.ran.items() if epoch == e] for e in range(4)]
    assert counts[0] == [9] * 4
    assert min(counts[1] + counts[2]) < 9
    assert all(count[2] == 9 for count in counts[:3])  # the probed batch runs whole
    assert counts[3] == [4] * 4
    assert first.between == {9, 4}
    for names in first.ran.values():
        assert all(f"stages.{s}.0.retrieval" in names for s in range(3))
    assert ela.plan.origin.epoch == 3
    assert hooks(one) == 0


def compiled_times() -> tuple[list[int], Any]:
    times = [0]

    def backend(graph: Any, inputs: Any) -> Any:
        times[0] += 1
        return graph.forward

    return times, backend


def test_a_compiled_network_is_compiled_again_only_when_the_plan_changes() -> None:
    torch.compiler.reset()
    times, backend = compiled_times()
    plain, module = Classifier(tiny()), Classifier(tiny())
    module.net = torch.compile(module.net, backend=backend)

    class Count(pl.Callback):
        def __init__(self) -> None:
            self.after: list[int] = []

        def on_train_batch_end(self, *_: Any) -> None:
            self.after.append(times[0])

    count, watch = Count(), Watch()
    settings = {"skip": 0.5, "warmup": 1, "ramp": 2, "every": 3}
    fitted(module, ELA(**settings), count, watch, epochs=4)
    new = np.flatnonzero(np.diff([0, *count.after]))
    assert list(new) == [0, 4, 8]  # the first batch, and those after the two changes
    assert [len(names) for names in watch.sites] == [4, 3, 2, 2]
    fitted(plain, ELA(**settings), epochs=4)
    assert module.losses == pytest.approx(plain.losses, rel=0.01)
    assert hooks(module) == 0
    with pytest.raises(OptionError, match="leave out stochastic, or torch.compile"):
        fitted(Classifier(torch.compile(tiny())), ELA(**settings, stochastic=True), epochs=4)
    torch.compiler.reset()


def test_a_network_compiled_in_place_is_probed_too() -> None:
    torch.compiler.reset()
    times, backend = compiled_times()
    module = Classifier(tiny())
    module.net.compile(backend=backend)
    ela = ELA(skip=0.5, warmup=1, ramp=1, every=2)
    fitted(module, ela, epochs=2)
    assert ela.share == pytest.approx(2 / 4)
    assert times[0] > 1
    assert module.net._compiled_call_impl is not None
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        (lambda: Classifier(create_model("resnet20")), ModelError, "no layer attention found"),
        (
            lambda: Classifier(nn.Sequential(nn.Flatten(), nn.Linear(192, 3))),
            ModelError,
            "no adapter knows any part of this Classifier",
        ),
        (lambda: Classifier(network("mrla_b_resnet8")), PlanError, "cannot skip 2 of 3"),
        (lambda: Classifier(network("mrla_l_resnet20")), PlanError, "cannot recur"),
    ],
)
def test_a_network_that_cannot_be_pruned_so_is_refused_before_it_trains(
    module: Any, error: type[Exception], message: str
) -> None:
    user = module()
    with pytest.raises(error, match=message) as caught:
        fitted(user, ELA(skip=0.5, warmup=1, ramp=1, action="recur"))
    assert "\n" not in str(caught.value)
    assert not user.losses


def test_strategies_that_keep_a_network_as_it_is_are_refused() -> None:
    trainer = SimpleNamespace(strategy=ModelParallelStrategy())
    with pytest.raises(
        OptionError, match=r"got pytorch_lightning\..*ModelParallelStrategy. Choose devices=1"
    ):
        ELA().setup(trainer, Classifier(), "fit")
    trainer = SimpleNamespace(strategy=DDPStrategy())
    with pytest.raises(OptionError, match="choose strategy='ddp_find_unused_parameters_true'"):
        ELA(stochastic=True).setup(trainer, Classifier(), "fit")


def test_a_config_and_settings_together_are_refused() -> None:
    with pytest.raises(OptionError, match="expected one of them"):
        ELA(ELAConfig(), skip=0.5)
    with pytest.raises(OptionError, match="there is no 'share'"):
        ELA(share=0.5)
    with pytest.raises(ModelError, match="fit a module with it first"):
        ELA().analysis  # noqa: B018


def test_before_an_epoch_has_ended_there_are_no_averages() -> None:
    class Asks(pl.Callback):
        def on_train_start(self, *_: Any) -> None:
            ela.analysis  # noqa: B018

    ela = ELA(warmup=1, ramp=1)
    with pytest.raises(AnalysisError, match="no epoch has ended yet"):
        fitted(Classifier(), ela, Asks())


def test_a_step_that_raises_leaves_no_hooks_and_the_network_whole() -> None:
    class Fails(pl.Callback):
        def __init__(self, batch: int) -> None:
            self.batch = batch

        def on_before_backward(self, trainer: pl.Trainer, *_: Any) -> None:
            if (trainer.current_epoch, trainer.fit_loop.batch_idx) == (1, self.batch):
                raise ValueError("mine")

    for batch in (0, 2):  # drawn, probed
        module = Classifier()
        ela = ELA(skip=0.5, warmup=1, ramp=2, freeze=3, stochastic=True, every=4)
        with pytest.raises(ValueError, match="mine"):
            fitted(module, ela, Fails(batch))
        assert hooks(module) == 0
        assert len(sites(module.net)) == 9
        assert "on_load_checkpoint" not in vars(module)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_lightnings_own_checkpoints_resume_exactly_on_a_fresh_module(
    tmp_path: Path, kind: str
) -> None:
    settings: dict[str, Any] = {"skip": 0.75, "warmup": 1, "ramp": 3, "action": "drop"}
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    whole, ela = Classifier(tiny(), kind=kind), ELA(**settings)
    fitted(whole, ela, keep, epochs=6, enable_checkpointing=True)
    for epoch in (0, 1, 2, 4):
        resumed, again = Classifier(tiny(), kind=kind), ELA(**settings)
        fitted(resumed, again, epochs=6, ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
        assert again.plan == ela.plan
        assert same(whole, resumed)
        assert whole.losses[-len(resumed.losses) :] == resumed.losses
        for one, other in zip(ela.analysis.stages, again.analysis.stages, strict=True):
            np.testing.assert_array_equal(one.divergences["kl"], other.divergences["kl"])
    with pytest.raises(CheckpointError, match=r"pruned further than the checkpoint's, by stages\."):
        fitted(whole, ela, epochs=6, ckpt_path=tmp_path / "epoch=0.ckpt")


# The command


SETTINGS = ELAConfig(skip=0.5, warmup=1, ramp=3)
RUN = TrainConfig(epochs=5, batch_size=8, lr=0.05, warmup_epochs=1)
SPEC = ModelSpec(name="mrla_b_resnet14")


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "set", size=8)


class InterruptAt(pl.Callback):
    def __init__(self, epoch: int, batch: int) -> None:
        self.when = epoch, batch

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (trainer.current_epoch, batch_idx) == self.when:
            raise KeyboardInterrupt


def trained(prefix: Path, output: Path, *, resume: bool = False, **changes: Any) -> Any:
    data = open_data(f"npz:{prefix}", val_fraction=0.2)
    options = {"ela": SETTINGS, **changes}
    return train(
        SPEC, data, RUN, output=output, device="cpu", resume=resume, progress=False, **options
    )


@pytest.fixture(scope="module")
def whole(prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return trained(prefix, tmp_path_factory.mktemp("whole"))


def without_seconds(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in rows]


def equal_runs(one: Path, other: Path) -> bool:
    plans = [SkipPlan.load(folder / "plan.json") for folder in (one, other)]
    files = [read_checkpoint(folder / "last.pt") for folder in (one, other)]
    return (
        plans[0] == plans[1]
        and files[0].header.plans == files[1].header.plans
        and same(files[0].model, files[1].model)
    )


def test_a_run_writes_checkpoints_that_rebuild_the_pruned_network(whole: Any) -> None:
    folder = whole.last.parent
    plan = SkipPlan.load(folder / "plan.json")
    assert plan.share == pytest.approx(0.5)
    assert plan.origin.model == "mrla_b_resnet14"
    assert plan.origin.data.startswith("npz:")
    last = read_checkpoint(whole.last)
    assert last.header.plans == (plan,)
    assert len(sites(load_checkpoint(whole.last))) == 3
    best = read_checkpoint(whole.best)
    skipped = next(
        row["skipped"] for row in whole.history if row["epoch"] == best.header.metrics["epoch"]
    )
    assert sum(p.share for p in best.header.plans) == pytest.approx(skipped)
    assert [row["skipped"] for row in whole.history] == pytest.approx(
        [0, 1 / 6, 2 / 6, 3 / 6, 3 / 6]
    )
    assert whole.log.read_text().splitlines()[0].endswith("seconds,skipped,ebqm_seconds")
    assert whole.ela["plan"] == folder / "plan.json"
    assert whole.ela["ebqm_seconds"] == pytest.approx(
        sum(row["ebqm_seconds"] for row in whole.history), abs=1e-4
    )


@pytest.mark.parametrize(("epoch", "batch"), [(0, 2), (1, 1), (3, 5), (4, 0)])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(
    prefix: Path, tmp_path: Path, whole: Any, monkeypatch: pytest.MonkeyPatch,
    epoch: int, batch: int,
) -> None:  # fmt: skip
    import ela_probe.pipeline as pipeline

    fit = pipeline.fit

    def cut(*arguments: Any, callbacks: list[pl.Callback], **options: Any) -> Any:
        return fit(*arguments, callbacks=[*callbacks, InterruptAt(epoch, batch)], **options)

    monkeypatch.setattr(pipeline, "fit", cut)
    with pytest.raises(TrainingInterrupted):
        trained(prefix, tmp_path)
    monkeypatch.undo()
    result = trained(prefix, tmp_path, resume=epoch > 0)
    assert equal_runs(tmp_path, whole.last.parent)
    assert without_seconds(result.history) == without_seconds(whole.history)


def test_a_run_that_is_killed_goes_on_as_if_it_had_not_been(
    prefix: Path, tmp_path: Path, whole: Any
) -> None:
    words = [
        "train", "--model", "mrla_b_resnet14", "--data", f"npz:{prefix}", "--epochs", "5",
        "--batch-size", "8", "--lr", "0.05", "--warmup", "1", "--val-fraction", "0.2",
        "--ela", "skip=0.5,warmup=1,ramp=3", "--device", "cpu", "-o", str(tmp_path),
    ]  # fmt: skip
    code = "import sys; from ela_probe_cli import main; sys.exit(main(sys.argv[1:]))"
    state = tmp_path / "resume.ckpt"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not state.exists() and process.poll() is None:
        time.sleep(0.002)
    time.sleep(random.Random().uniform(0, 0.2))  # at any moment of the four epochs left
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "plan.json").exists() or SkipPlan.load(tmp_path / "plan.json")
    assert main([*words, "--resume"]) == 0
    assert equal_runs(tmp_path, whole.last.parent)


def test_the_command_says_what_ela_did_and_cost(
    prefix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "train", "--model", "mrla_b_resnet14", "--data", f"npz:{prefix}", "--epochs", "2",
        "--batch-size", "16", "--ela", "skip=0.4,warmup=1,ramp=1", "--device", "cpu",
        "-o", tmp_path,
    ]  # fmt: skip
    document = command(capsys, *words)
    assert document["ela"]["plan"] == str(tmp_path / "plan.json")
    assert (document["ela"]["skipped"], document["ela"]["retrievals"]) == (2, 6)
    assert 0 < document["ela"]["ebqm_share"] < 1
    assert document["final"]["skipped"] == pytest.approx(1 / 3)
    assert main([*map(str, words)]) == 0
    out, err = capsys.readouterr()
    assert "ELA skips 2 of 6 retrievals (33%); probing and planning took" in out
    assert "skipped 33%" in err
    words[words.index("--ela") + 1] = "skip=0.5,warmup=1,ramp=1"
    line = command(capsys, *words, "--resume", code=2)
    assert "ela skip 0.4 then, 0.5 now" in line
    del words[words.index("--ela") : words.index("--ela") + 2]
    assert "ela skip 0.4 then, None now" in command(capsys, *words, "--resume", code=2)


@pytest.mark.parametrize(
    ("model", "ela", "message"),
    [
        ("mrla_b_resnet14", "skip", "expected name=value"),
        ("mrla_b_resnet14", "skip=2", "skip '2'"),
        ("mrla_b_resnet14", "warmup=9,ramp=9", "no epoch trains with it"),
        ("mrla_b_resnet14", "skip=0.9", "cannot skip 5 of 6"),
        ("resnet14", "skip=0.5", "no layer attention found"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(
    prefix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    model: str, ela: str, message: str,
) -> None:  # fmt: skip
    words = ["train", "--model", model, "--data", f"npz:{prefix}", "--epochs", "3"]
    line = command(capsys, *words, "--ela", ela, "-o", tmp_path, "--device", "cpu", code=2)
    assert message in line


def test_the_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    from ela_probe_cli.train import ELA_HELP

    assert all(name in ELA_HELP for name in ELAConfig.model_fields)

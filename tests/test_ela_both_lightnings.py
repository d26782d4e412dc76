"""`pytorch_lightning` and `lightning.pytorch`: ELA trains under either, and refuses by name."""

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import pytorch_lightning
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from ela_probe import ELA, create_model
from ela_probe.errors import OptionError
from ela_probe.training.ela.wrapping import check_strategy, is_strategy
from tests.support.lightning_package import import_lightning


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    before, path = set(sys.modules), list(sys.path)
    yield import_lightning(tmp_path_factory.mktemp("packages"))
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if name.partition(".")[0] == "lightning":
            del sys.modules[name]


def module_of(pl: ModuleType) -> Any:
    class Classifier(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            with torch.random.fork_rng():
                torch.manual_seed(0)
                self.net = create_model("mrla_b_resnet14", num_classes=3)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            images, labels = batch
            return F.cross_entropy(self.net(images), labels)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.05)

    return Classifier()


def fitted(pl: ModuleType, **options: Any) -> tuple[Any, Any, ELA]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(16, 3, 8, 8, generator=generator)
    data = DataLoader(TensorDataset(images, torch.arange(16) % 3), 8)
    module, ela = module_of(pl), ELA(skip=0.5, warmup=1, ramp=2)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=3, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, callbacks=[ela],
    )  # fmt: skip
    trainer.fit(module, data, **options)
    return trainer, module, ela


def test_the_two_packages_have_classes_of_their_own(other: ModuleType) -> None:
    assert other.__name__ == "lightning.pytorch"
    assert not issubclass(other.Trainer, pytorch_lightning.Trainer)
    assert not isinstance(ELA(), other.Callback)


def test_ela_does_the_same_under_either(other: ModuleType) -> None:
    (_, one, its_ela), (_, same, ela) = fitted(pytorch_lightning), fitted(other)
    assert its_ela.plan is not None
    assert its_ela.plan == ela.plan
    assert ela.share == 0.5
    for ours, theirs in zip(one.net.parameters(), same.net.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_checkpoint_of_the_other_trainer_resumes(other: ModuleType, tmp_path: Any) -> None:
    trainer, module, ela = fitted(other)
    path = tmp_path / "end.ckpt"
    trainer.save_checkpoint(path)
    _, again, resumed = fitted(other, ckpt_path=path, weights_only=True)
    assert resumed.plan == ela.plan
    assert list(again.net.state_dict()) == list(module.net.state_dict())


def test_strategies_are_told_by_name_in_both_packages(other: ModuleType) -> None:
    for pl in (pytorch_lightning, other):
        strategies = pl.strategies
        single = strategies.SingleDeviceStrategy(torch.device("cpu"))
        check_strategy(single, stochastic=True)

        class Mine(strategies.DDPStrategy):  # type: ignore[misc, name-defined]
            pass

        check_strategy(Mine(), stochastic=False)
        check_strategy(Mine(find_unused_parameters=True), stochastic=True)
        with pytest.raises(OptionError, match="choose strategy='ddp_find_unused_parameters_true'"):
            check_strategy(Mine(), stochastic=True)
        with pytest.raises(OptionError) as caught:
            check_strategy(strategies.FSDPStrategy(), stochastic=False)
        message = str(caught.value)
        assert f"got {pl.__name__}.strategies.fsdp.FSDPStrategy" in message
        assert "SingleDeviceStrategy" in message.partition("got")[0]  # what would be accepted


def test_what_is_not_lightnings_or_rewrites_the_network_is_refused() -> None:
    class SingleDeviceStrategy:
        pass

    class DeepSpeedStrategy(pytorch_lightning.strategies.DDPStrategy):
        __module__ = "pytorch_lightning.strategies.deepspeed"

    assert not is_strategy(SingleDeviceStrategy(), "SingleDeviceStrategy")
    for strategy in (SingleDeviceStrategy(), DeepSpeedStrategy()):
        with pytest.raises(OptionError, match=f"got .*{type(strategy).__qualname__}"):
            check_strategy(strategy, stochastic=False)

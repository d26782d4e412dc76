"""What the ELA callback refuses, and that a failing step leaves the network whole."""

from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn

from ela_probe import ELA, create_model
from ela_probe.errors import (
    AnalysisError,
    ModelError,
    OptionError,
    PlanError,
)
from ela_probe.training.ela.config import ELAConfig
from tests.support.networks import hooks, network, sites
from tests.support.training import (
    Classifier,
    fitted,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*:FutureWarning")


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
    trainer: Any = SimpleNamespace(strategy=ModelParallelStrategy())
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
        assert hooks(module) == []
        assert len(sites(module.net)) == 9
        assert "on_load_checkpoint" not in vars(module)

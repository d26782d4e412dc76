"""ELA in a Trainer whose network is compiled."""

from typing import Any, cast

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from ela_probe import ELA
from ela_probe.errors import (
    OptionError,
)
from tests.support.networks import hooks, one_stage
from tests.support.training import Classifier, Watch, fitted

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*:FutureWarning")


def compiled_times() -> tuple[list[int], Any]:
    times = [0]

    def backend(graph: Any, inputs: Any) -> Any:
        times[0] += 1
        return graph.forward

    return times, backend


def test_a_compiled_network_is_compiled_again_only_when_the_plan_changes() -> None:
    torch.compiler.reset()
    times, backend = compiled_times()
    plain, module = Classifier(one_stage().double()), Classifier(one_stage().double())
    module.net = cast(nn.Module, torch.compile(module.net, backend=backend))

    class Count(pl.Callback):
        def __init__(self) -> None:
            self.after: list[int] = []

        def on_train_batch_end(self, *_: Any) -> None:
            self.after.append(times[0])

    count, watch = Count(), Watch()
    settings: dict[str, Any] = {"skip": 0.5, "warmup": 1, "ramp": 2, "every": 3}
    fitted(module, ELA(**settings), count, watch, epochs=4, precision="64-true")
    new = np.flatnonzero(np.diff([0, *count.after]))
    assert list(new) == [0, 4, 8]  # the first batch, and those after the two changes
    assert [len(names) for names in watch.sites] == [4, 3, 2, 2]
    fitted(plain, ELA(**settings), epochs=4, precision="64-true")
    assert module.losses == pytest.approx(plain.losses, rel=1e-6)  # 16 steps enlarge rounding
    assert hooks(module) == []
    with pytest.raises(OptionError, match="leave out stochastic, or torch.compile"):
        compiled = cast(nn.Module, torch.compile(one_stage()))
        fitted(Classifier(compiled), ELA(**settings, stochastic=True), epochs=4)
    torch.compiler.reset()


def test_a_network_compiled_in_place_is_probed_too() -> None:
    torch.compiler.reset()
    times, backend = compiled_times()
    module = Classifier(one_stage())
    module.net.compile(backend=backend)
    ela = ELA(skip=0.5, warmup=1, ramp=1, every=2)
    fitted(module, ela, epochs=2)
    assert ela.share == pytest.approx(2 / 4)
    assert times[0] > 1
    assert module.net._compiled_call_impl is not None
    torch.compiler.reset()


def test_a_network_with_a_compiled_part_is_probed_and_pruned_under_its_plain_names() -> None:
    torch.compiler.reset()
    times, backend = compiled_times()
    plain, module = Classifier(one_stage().double()), Classifier(one_stage().double())
    network: Any = module.net
    part = network.conv1 = torch.compile(network.conv1, backend=backend)
    settings: dict[str, Any] = {"skip": 0.5, "warmup": 1, "ramp": 2, "every": 3}
    ela, other = ELA(**settings), ELA(**settings)
    fitted(module, ela, epochs=4, precision="64-true")
    fitted(plain, other, epochs=4, precision="64-true")
    assert times[0]
    assert ela.plan is not None
    assert other.plan is not None
    assert ela.plan.actions == other.plan.actions
    assert network.conv1 is part
    assert module.losses == pytest.approx(plain.losses, rel=1e-6)
    assert hooks(module.net) == []
    torch.compiler.reset()

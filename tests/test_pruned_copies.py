"""A pruned model is a copy, also of a model whose weights are computed before each forward pass."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm
from torch.nn.utils import prune as masks

from ela_probe import SkipPlan, discover, prune
from ela_probe.errors import ModelError
from ela_probe.evaluation.profiling import count_flops
from ela_probe.forward import copied
from tests.support.identities import assert_same
from tests.support.networks import settled
from tests.support.pruning import zeroed

SKIPPED = "stages.0.2.retrieval"


def masked(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            masks.l1_unstructured(module, "weight", 0.3)


def with_a_computed_tensor(model: Any) -> None:
    model.last = {"features": [model(torch.randn(2, 3, 16, 16).double())]}


COMPUTED: dict[str, Callable[[Any], object]] = {
    "masks": masked,
    "weight norm": lambda model: weight_norm(model.conv1),
    "parametrised": lambda model: parametrizations.weight_norm(model.conv1),
    "spectral norm": lambda model: spectral_norm(model.conv1),
    "an output that was kept": with_a_computed_tensor,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("way", COMPUTED)
def test_computed_weights_stay_computed_in_the_pruned_model(way: str, images: Tensor) -> None:
    model, images = settled("mrla_b_resnet20").double(), images.double()
    COMPUTED[way](model)
    model(images).sum().backward()  # the weights are no leaves now
    pruned = prune(model, SkipPlan.for_actions(discover(model).stages, {SKIPPED: "skip"}))
    assert count_flops(model, (3, 16, 16)) > count_flops(pruned, (3, 16, 16))
    result = pruned(images)
    zeroed(model, [SKIPPED])
    assert_same(result, model(images))
    result.sum().backward()
    assert all(p.grad is not None for n, p in pruned.named_parameters() if n.startswith("conv1"))


def test_masks_are_kept_in_the_pruned_model(images: Tensor) -> None:
    model: Any = settled("mrla_b_resnet20")
    masked(model)
    pruned: Any = prune(model, SkipPlan.for_actions(discover(model).stages, {SKIPPED: "skip"}))
    with torch.no_grad():
        pruned.conv1.weight_orig.fill_(1)
        pruned(images)
    assert torch.equal(pruned.conv1.weight, model.conv1.weight_mask)
    masks.remove(pruned.conv1, "weight")
    assert isinstance(pruned.conv1.weight, nn.Parameter)


class Uncopied:
    def __deepcopy__(self, memo: object) -> None:
        raise TypeError("cannot pickle '_thread.lock' object")


def test_what_cannot_be_copied_is_named() -> None:
    model: Any = settled("mrla_b_resnet20")
    model.lock = Uncopied()
    plan = SkipPlan.for_actions(discover(model).stages, {SKIPPED: "skip"})
    with pytest.raises(ModelError, match="this ResNet cannot be copied .*_thread.lock"):
        prune(model, plan)


class MadeByArguments(nn.Module):
    """Its `__new__` takes an argument, so that `copy.deepcopy` refuses it."""

    def __new__(cls, width: int) -> "MadeByArguments":
        return super().__new__(cls)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def test_a_module_made_by_arguments_is_copied() -> None:
    part = MadeByArguments(3).double()
    model = nn.Sequential(part, nn.Linear(3, 3).double(), part)
    x = torch.randn(2, 3).double()
    copy: Any = copied(model)
    assert copy[0] is copy[2] is not part
    assert_same(copy(x), model(x))
    with torch.no_grad():
        part.linear.weight.zero_()
    assert copy[0].linear.weight.abs().max() > 0

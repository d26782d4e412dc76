"""Published code of a slightly different structure: what adapters take, and what they leave."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ela_probe import AttentionProbe, discover, make_plan, prune
from ela_probe.adapters.registry import adapter_for
from ela_probe.errors import ModelError
from tests.support.lookalikes import GateNetwork, Plain, SoftLayer, SoftNetwork, pooled
from tests.support.pruning import analysed


def without_drop_path(model: nn.Module) -> nn.Module:
    """The same network as a detection backbone has it: blocks that have no `drop_path`."""

    def forward(block: Any, x: Tensor, *sources: Tensor) -> Any:
        out, shortcut = Plain.forward(block, x)
        if not sources:
            return out + block.bn_mrla(block.mrla(out, shortcut))
        retrieved, keys, values = block.mrla(out, *sources)
        return out + block.relu(block.bn_mrla(retrieved)), keys, values

    for module in model.modules():
        if "drop_path" in module._modules:
            del module.drop_path
            module.forward = forward.__get__(module)
    return model


@pytest.mark.parametrize(("network", "adapter"), [(SoftNetwork, "mrla-b"), (GateNetwork, "mrla-l")])
def test_blocks_without_a_drop_path_are_found_and_pruned(
    network: Any, adapter: str, images: Tensor
) -> None:
    model = without_drop_path(network()).eval()
    found = discover(model, images)
    assert found.adapter.name == adapter
    assert [stage.sizes for stage in found.stages] == [(1, 2, 3, 4)] * 3
    plan = make_plan(analysed(model), skip=0.5)
    pruned = prune(model, plan)
    left = {site.name for stage in discover(pruned).stages for site in stage.sites}
    assert left == {name for name, action in plan.actions.items() if action == "keep"}
    assert pruned(images).shape == (len(images), 10)


class LinearLayer(SoftLayer):
    """Linear attention over layers: the same submodules, but the softmax is never called."""

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        key, value = self.Wk(pooled(x)), self.Wv(x)[:, None]
        if not self.init_cell:
            key, value = torch.cat([keys, key], 1), torch.cat([values, value], 1)
        scores = (self.Wq(pooled(x)).sigmoid() * key.sigmoid()).sum(-1)
        return torch.einsum("bt,btchw->bchw", scores, value), key, value


def test_a_layer_that_leaves_its_softmax_unused_falls_back_to_observation(images: Tensor) -> None:
    model = SoftNetwork().eval()
    assert adapter_for(model) is not None
    for module in model.modules():
        if isinstance(module, SoftLayer):
            module.__class__ = LinearLayer
    state = torch.get_rng_state()
    assert adapter_for(model) is None
    assert torch.equal(torch.get_rng_state(), state)
    found = discover(model, images)
    assert {stage.kind for stage in found.stages} == {"signed"}  # products of two sigmoids
    with pytest.raises(ModelError, match="give example inputs"):
        AttentionProbe(model)

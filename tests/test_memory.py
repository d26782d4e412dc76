"""The order of images in memory changes nothing of what is computed."""

import pytest
import torch
from torch import nn

from ela_probe.evaluation.evaluate import evaluate
from ela_probe.models.registry import ModelSpec
from ela_probe.system.memory_format import to_memory_format
from ela_probe.training.config import TrainConfig
from ela_probe.training.module import ClassificationModule


def network(channels: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ModelSpec(name="mrla_b_resnet20", args={"in_channels": channels}).build()


def order_of(feature_maps: torch.Tensor) -> str:
    return "channels last" if feature_maps.stride(1) == 1 else "channels first"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("wanted", [True, False, None])
def test_feature_maps_lie_in_the_order_of_the_images(channels: int, wanted: bool | None) -> None:
    model = network(channels)
    images = torch.randn(2, channels, 8, 8)
    ordered = to_memory_format(images, model, channels_last=wanted)
    assert torch.equal(ordered, images)
    seen = []
    for convolution in (part for part in model.modules() if isinstance(part, nn.Conv2d)):
        convolution.register_forward_hook(lambda module, args, out: seen.append(order_of(out)))
    model(ordered)
    assert set(seen) == {"channels first" if wanted is False else "channels last"}


def test_by_default_another_network_gets_images_as_they_are() -> None:
    images, flattening = torch.randn(2, 3, 8, 8), nn.Flatten()
    assert to_memory_format(images, flattening) is images
    assert order_of(to_memory_format(images, flattening, channels_last=True)) == "channels last"


def test_tokens_and_other_devices_are_left_alone() -> None:
    tokens, elsewhere = torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 3, 8, 8, device="meta")
    assert to_memory_format(tokens, network(), channels_last=True) is tokens
    assert to_memory_format(elsewhere, network()) is elsewhere


def test_a_training_step_is_the_same_in_either_order() -> None:
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    batch = images, torch.randint(10, (4,))
    found = []
    for wanted in (True, False):
        model = network().double()
        config = TrainConfig(channels_last=wanted)
        module = ClassificationModule(model, config, num_classes=10, steps_per_epoch=1)
        loss = module.training_step(batch, 0)
        loss.backward()
        found.append([loss, *(p.grad for p in model.parameters())])
    for last, first in zip(*found, strict=True):
        torch.testing.assert_close(last, first, rtol=1e-9, atol=1e-10)


def test_evaluation_gives_the_model_back_as_it_was() -> None:
    model = network()
    strides = {name: value.stride() for name, value in model.state_dict().items()}
    batch = torch.randn(8, 3, 8, 8), torch.randint(10, (8,))
    evaluate(model, [batch], progress=False)
    assert {name: value.stride() for name, value in model.state_dict().items()} == strides

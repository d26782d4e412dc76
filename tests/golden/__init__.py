"""Deterministic weights and inputs by formula, and logits of the published code on them.

`published.json` holds names, shapes, counts and logits only. `benchmarks/published/golden.py`
wrote it.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ela_probe.models import attention_mechanisms
from ela_probe.models.registry import create_model
from ela_probe.models.resnet import Layout, ResNet

PATH = Path(__file__).with_name("published.json")


def weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """A state dict for published names and shapes, float32, by name, place in the list and shape.

    Convolutions keep the variance of what they read, BatchNorm's numbers differ from 1 and 0.
    """
    state = {}
    for place, (name, shape) in enumerate(shapes.items()):
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(0)
            continue
        noise = spread(shape, start=1000 * place)
        if name.endswith("running_var"):
            value = 1.5 + 0.5 * noise
        elif name.endswith("running_mean") or (name.endswith("bias") and len(shape) == 1):
            value = 0.2 * noise
        elif name.endswith("lambda_t"):
            value = noise
        elif len(shape) == 1:
            value = 1.0 + 0.3 * noise
        else:
            fan_in = int(np.prod(shape[1:]))
            value = noise * np.sqrt(3 / fan_in)
        if name == "fc.weight":
            value = 0.4 * value
        if ".Wq." in name or ".Wk." in name:
            value = 2.0 * value  # so that the weights are not all alike
        state[name] = torch.from_numpy(np.asarray(value, dtype=np.float32))
    return state


def network(entry: Mapping[str, Any]) -> nn.Module:
    """Ours: a `model` of the registry, or a `layout` and an `attention`, with `arguments`."""
    if "model" in entry:
        return create_model(entry["model"], **entry["arguments"])
    attention = getattr(attention_mechanisms, entry["attention"])(**entry["arguments"])
    return ResNet(Layout(**entry["layout"]), attention)


def layer_flops(model: nn.Module, size: int) -> int:
    """FLOPs of the convolutions and linear layers on an image of size x size.

    Batched products are left aside: published code forms its weighted sums with them, we don't.
    """
    model = copy.deepcopy(model).eval()
    image = torch.zeros(1, 3, size, size, dtype=next(model.parameters()).dtype)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    by_operation = counter.get_flop_counts()["Global"]
    return sum(n for operation, n in by_operation.items() if operation is not torch.ops.aten.bmm)


def images(samples: int = 2, size: int = 32) -> Tensor:
    """(samples, 3, size, size) float32."""
    values = spread((samples, 3, size, size), start=17)
    return torch.from_numpy((1.7 * values).astype(np.float32))


def spread(shape: Sequence[int], *, start: int) -> np.ndarray:
    """Numbers in [-1, 1) that look random: multiples of an irrational, hashed by a quadratic."""
    index = np.arange(start, start + int(np.prod(shape)), dtype=np.float64)
    turns = index * 0.6180339887498949 + index * index * 0.41421356237309503
    return (2.0 * (turns - np.floor(turns)) - 1.0).reshape(tuple(shape))

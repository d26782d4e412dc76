"""Records what the published code answers to weights and images by formula (tests/golden)."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ela_probe.models import parameter_count
from tests.golden import images, weights

NETWORKS = ((20, "basic"), (29, "bottleneck"))
BLOCKS = {"basic": "basicblock", "bottleneck": "bottleneck"}


def recording(published: Mapping[str, Callable[..., nn.Module]]) -> str:
    """JSON with one entry a network: names, shapes, parameter count and logits in both modes.

    The published code runs in float64 on float32 weights, so that the logits are the exact ones.

    Args:
        published: the function that builds a network, by our family's name ("mrla_b_", ...).
    """
    entries = []
    for family, build in published.items():
        for depth, block in NETWORKS:
            model = build(depth=depth, num_classes=10, block_name=BLOCKS[block])
            entries.append({"model": f"{family}resnet{depth}", "block": block, **answers(model)})
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    return f"[\n{lines}\n]\n"


@torch.no_grad()
def answers(model: nn.Module) -> dict[str, Any]:
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict(weights(shapes))
    model.double()
    return {
        "parameters": parameter_count(model),
        "eval": model.eval()(images().double()).tolist(),
        "train": model.train()(images().double()).tolist(),
        "shapes": shapes,
    }

"""Records what the published code answers to weights and images by formula (tests/golden)."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.zoo import Twin, in_precision
from ela_probe.models.registry import parameter_count
from tests.golden import images, layer_flops, weights


def recording(twins: Iterable[tuple[Twin, Path]]) -> str:
    """JSON with one entry a network: shapes by name, counts, and logits in both modes.

    The published code runs in float64 on float32 weights, so that the logits are the exact ones.

    Args:
        twins: with the checkout of each.
    """
    entries = []
    for twin, root in twins:
        if twin.recorded:
            origin = {"repository": twin.repository, "network": twin.network}
            batch = {"samples": twin.samples or 2, "size": twin.size}
            entries.append({**origin, **twin.ours, **batch, **answers(twin.theirs(root), **batch)})
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    return f"[\n{lines}\n]\n"


@torch.no_grad()
def answers(model: nn.Module, *, samples: int, size: int) -> dict[str, Any]:
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict(weights(shapes))
    with in_precision(torch.float64):
        model.double()
        inputs = images(samples, size).double()
        return {
            "parameters": parameter_count(model),
            "flops": layer_flops(model, size),
            "eval": model.eval()(inputs).tolist(),
            "train": model.train()(inputs).tolist(),
            "shapes": shapes,
        }

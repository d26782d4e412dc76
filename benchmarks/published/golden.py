"""Records the outputs of published networks, with weights and images by formula, for the tests.

`tests/golden` has the formulas and the file.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.published.checkouts import in_precision
from benchmarks.published.counterparts import Counterpart
from ela_probe.models.registry import parameter_count
from tests.golden import images, layer_flops, weights


def recorded_outputs(counterparts: Iterable[tuple[Counterpart, Path]]) -> str:
    """JSON with one entry a network: shapes by name, counts, and logits in both modes.

    The published code runs in float64 on float32 weights, so that the logits are the exact ones.

    Args:
        counterparts: with the checkout of each.
    """
    entries = []
    for counterpart, checkout in counterparts:
        if counterpart.recorded:
            theirs = counterpart.network
            origin = {"repository": theirs.repository, "network": theirs.label}
            batch = {"samples": counterpart.samples or 2, "size": theirs.size}
            outputs = outputs_of(theirs.from_checkout(checkout), **batch)
            entries.append({**origin, **counterpart.ours, **batch, **outputs})
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    return f"[\n{lines}\n]\n"


@torch.no_grad()
def outputs_of(model: nn.Module, *, samples: int, size: int) -> dict[str, Any]:
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

"""The size of a model that a file asks for, found before memory is taken for it.

A checkpoint of two kilobytes may name a network of a billion layers. Its weights are in the file,
so that a network with many times as many is none that the file can fill.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules import module as registration

from ela_probe.errors import CheckpointError, ElaProbeError
from ela_probe.models.registry import ModelSpec
from ela_probe.system.messages import class_and_first_line

TIMES = 16  # the weights that pruning has removed are not in the file
SPARE_PARTS, SPARE_NUMBERS = 10_000, 10**7


class _TooLarge(Exception):
    """Ends the building."""


def check_size(spec: ModelSpec, state: Mapping[str, Tensor]) -> None:
    """Build a model of the zoo without memory for its tensors, and stop where it gets too large.

    Args:
        spec: the model that a file asks for. A factory is not called.
        state: the tensors that the file holds.

    Raises:
        CheckpointError: it has far more parts or numbers than the file, or can't be built.
        ModelError: as `ModelSpec.build`.
    """
    if spec.is_factory:
        return
    parts = TIMES * len(state) + SPARE_PARTS
    numbers = TIMES * sum(tensor.numel() for tensor in state.values()) + SPARE_NUMBERS
    counted = {"parts": 0, "numbers": 0}

    def count(_module: Any, _name: str, part: Any) -> None:
        counted["parts"] += 1
        counted["numbers"] += part.numel() if isinstance(part, Tensor) else 0
        if counted["parts"] > parts or counted["numbers"] > numbers:
            raise _TooLarge

    hooks = [
        registration.register_module_parameter_registration_hook(count),
        registration.register_module_buffer_registration_hook(count),
        registration.register_module_module_registration_hook(count),
    ]
    try:
        with torch.device("meta"):
            spec.build()
    except ElaProbeError:
        raise
    except _TooLarge as error:
        raise CheckpointError(
            f"the header asks for {spec.name} with {spec.args}, which is far larger than the "
            f"{len(state):,} tensors in the file; expected the header of the network that was saved"
        ) from error
    except Exception as error:  # of sizes that no tensor can have
        raise CheckpointError(
            f"the header asks for {spec.name} with {spec.args}, which can't be built "
            f"({class_and_first_line(error)})"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()

"""The size of a model that a file asks for, found before memory is taken for it.

A checkpoint of two kilobytes may name a network of a billion layers. Its weights are in the file,
so that a network with many times as many is none that the file can fill.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules import module as registration

from ela_probe.errors import CheckpointError
from ela_probe.models.registry import ModelSpec
from ela_probe.system.messages import shortened
from ela_probe.system.reading import refusing

TIMES = 16  # the weights that pruning has removed are not in the file
SPARE_PARTS, SPARE_NUMBERS = 10_000, 10**7


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
    asked = f"the header asks for {shortened(spec.name)} with {shortened(str(spec.args))}"
    numbers = sum(tensor.numel() for tensor in state.values())
    with (
        refusing(CheckpointError, f"{asked}, which can't be built"),
        bounded_build(asked, tensors=len(state), numbers=numbers),
        torch.device("meta"),
    ):
        spec.build()


@contextmanager
def bounded_build(asked: str, *, tensors: int, numbers: int) -> Iterator[None]:
    """A block in which a network may be built that a file of so many tensors and numbers can fill.

    Args:
        asked: who asks for what network, to begin a message.

    Raises:
        CheckpointError: while a part is added that makes it too large.
    """
    most_parts, most_numbers = TIMES * tensors + SPARE_PARTS, TIMES * numbers + SPARE_NUMBERS
    counted = {"parts": 0, "numbers": 0}

    def count(_module: Any, _name: str, part: Any) -> None:
        counted["parts"] += 1
        counted["numbers"] += part.numel() if isinstance(part, Tensor) else 0
        if counted["parts"] > most_parts or counted["numbers"] > most_numbers:
            raise CheckpointError(
                f"{asked}, which is far larger than the {tensors:,} tensors in the file; expected "
                "what describes the network that was saved"
            )

    hooks = [
        registration.register_module_parameter_registration_hook(count),
        registration.register_module_buffer_registration_hook(count),
        registration.register_module_module_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

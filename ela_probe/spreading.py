"""Models that accelerate spreads over devices, and whose weights partly wait in memory or on disk.

A module's weights come to the device when it runs and go afterwards. In between its parameters lie
on the meta device: they have shapes but no values.
"""

import re
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from ela_probe.errors import OptionError
from ela_probe.system.extras import accelerate

MEMORY = re.compile(r"(\d+|cpu)=(\d+(?:\.\d+)?\s*[KMGT]?i?B)")
NO_DAMAGE = (
    "the damage of a model that is spread over devices or disk isn't measured: a backward pass "
    "keeps all its weights in memory; take --no-damage (damage=False)"
)


@dataclass(frozen=True)
class Spread:
    """How a model is spread.

    device_map: the strategy, as accelerate calls it. max_memory: by number of the GPU, or "cpu",
    at most so much, such as "20GiB"; what is left goes to disk. Empty: all that there is.
    """

    device_map: Literal["auto", "balanced", "sequential"]
    max_memory: Mapping[int | str, str] = field(default_factory=dict)


def parse_memory(text: str) -> dict[int | str, str]:
    """The limits in "0=20GiB,cpu=60GiB". Raises OptionError.

    >>> parse_memory("0=20GiB,cpu=60GiB")
    {0: '20GiB', 'cpu': '60GiB'}
    """
    limits: dict[int | str, str] = {}
    for part in text.split(","):
        found = MEMORY.fullmatch(part.strip())
        if found is None:
            raise OptionError(
                f"got {part.strip()!r} in --max-memory {text}, expected the number of a GPU or "
                "cpu, = and a size, as in 0=20GiB,cpu=60GiB"
            )
        limits[found[1] if found[1] == "cpu" else int(found[1])] = found[2]
    return limits


def is_spread(model: nn.Module) -> bool:
    """Whether accelerate brings the weights of this model, or its inputs, to where they are used.

    A model that a device map puts on a single device as a whole is an ordinary model there.
    """
    return hasattr(model, "_hf_hook")


def describe_spread(model: nn.Module) -> str:
    """Where its parts are, as in "3 of 11 parts on cpu, 8 of 11 parts on disk"."""
    places: Any = getattr(model, "hf_device_map", {})
    total, counts = len(places), Counter(str(place) for place in places.values())
    return ", ".join(f"{count} of {total} parts on {place}" for place, count in counts.items())


def placed(model: nn.Module, device: torch.device | None) -> nn.Module:
    """The model on this device; one that is spread stays where it is."""
    return model if device is None or is_spread(model) else model.to(device)


def input_device(model: nn.Module) -> torch.device:
    """Where a model takes its inputs; one that is spread moves them from the CPU itself."""
    first = next((p.device for p in model.parameters()), torch.device("cpu"))
    return torch.device("cpu") if is_spread(model) else first


def with_weights(module: nn.Module) -> AbstractContextManager[Any]:
    """A block in which the parameters of this module have their values."""
    if not hasattr(module, "_hf_hook"):
        return nullcontext()
    context: AbstractContextManager[Any] = accelerate().utils.align_module_device(module)
    return context

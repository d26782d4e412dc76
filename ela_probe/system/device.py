"""The device to compute on, from the name that the user gave."""

import torch

from ela_probe.errors import OptionError


def resolve_device(name: str = "auto") -> torch.device:
    """Turn `auto`, `cpu`, `cuda`, `cuda:1` or `mps` into a device of this machine.

    `auto` is the first available one of CUDA, MPS and the CPU.

    Raises:
        OptionError: the name is unknown, or this machine has no such device.
    """
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available.insert(0, "cuda")
    if name == "auto":
        return torch.device(available[0])
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    choices = ", ".join(available)
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise OptionError(f"unknown device {name!r}: choose auto or one of {choices}")
    if device.type not in available:
        raise OptionError(
            f"device {name!r} is not on this machine: choose auto or one of {choices}"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise OptionError(f"device {name!r} is not on this machine: the last one is cuda:{last}")
    return device

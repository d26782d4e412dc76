"""Which device to compute on, from what the user typed."""

import torch

from ela_probe.errors import OptionError


def resolve_device(name: str = "auto") -> torch.device:
    """Turn `auto`, `cpu`, `cuda`, `cuda:1` or `mps` into a device that this machine has.

    `auto` is the first present of CUDA, MPS and the CPU.

    Raises:
        OptionError: an unknown name, or a device that is not there.
    """
    present = ["cpu"]
    if torch.backends.mps.is_available():
        present.insert(0, "mps")
    if torch.cuda.is_available():
        present.insert(0, "cuda")
    if name == "auto":
        return torch.device(present[0])
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    here = ", ".join(present)
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise OptionError(f"unknown device {name!r}: choose auto or one of {here}")
    if device.type not in present:
        raise OptionError(f"device {name!r} is not on this machine: choose auto or one of {here}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise OptionError(f"device {name!r} is not on this machine: the last one is cuda:{last}")
    return device

"""Versions of what a result depends on."""

import importlib.metadata
import platform

__version__ = importlib.metadata.version("ela-probe")


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    names = ("ela-probe", "torch", "torchvision", "pytorch-lightning", "numpy")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found

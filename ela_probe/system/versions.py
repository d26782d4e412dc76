"""Versions of the software that a result depends on."""

import importlib.metadata
import platform

__version__ = importlib.metadata.version("ela-probe")


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that a result depends on, by name."""
    names = ("ela-probe", "torch", "torchvision", "pytorch-lightning", "numpy")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found

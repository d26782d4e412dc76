"""Adapters of other packages: entry points of the group `ela_probe.adapters`.

An entry point names an adapter, or a class or function that returns one when called without
arguments. They are loaded once, when the first adapter is searched for.
"""

import functools
import inspect
import warnings
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from torch import nn

from ela_probe.adapters.registry import Adapter, register_adapter
from ela_probe.system.messages import class_and_first_line

GROUP = "ela_probe.adapters"
METHODS = ("matches", "stages", "weights", "apply")


class PluginWarning(UserWarning):
    """The adapter of a package is ignored, since it raises; the message names the package."""


@functools.cache
def load_plugins() -> tuple[Adapter, ...]:
    """Register the adapters of installed packages; ignore a broken one with a warning."""
    found = []
    for point in sorted(entry_points(group=GROUP), key=lambda p: (p.name, p.value)):
        try:
            found.append(register_adapter(Guarded(_made(point), _package(point))))
        except Exception as error:  # a package may raise anything while it is imported
            _warn(point.name, _package(point), error)
    return tuple(found)


class Guarded:
    """An adapter of another package. If its `matches` raises, it does not match."""

    def __init__(self, adapter: Adapter, package: str) -> None:
        self._adapter, self._package = adapter, package

    def matches(self, model: nn.Module) -> bool:
        try:
            return bool(self._adapter.matches(model))
        except Exception as error:
            _warn(self._adapter.name, self._package, error)
            return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._adapter, name)


def _made(point: EntryPoint) -> Adapter:
    made = point.load()
    if inspect.isclass(made) or not hasattr(made, "matches"):
        made = made()
    missing = [name for name in METHODS if not callable(getattr(made, name, None))]
    if not isinstance(getattr(made, "name", None), str):
        missing.append("name")
    if missing:
        raise TypeError(
            f"{type(made).__name__} has no {', '.join(missing)}; expected all members of "
            "ela_probe.adapters.Adapter"
        )
    adapter: Adapter = made
    return adapter


def _package(point: EntryPoint) -> str:
    return "an unknown package" if point.dist is None else f"the package {point.dist.name}"


def _warn(name: str, package: str, error: Exception) -> None:
    warnings.warn(
        f"the adapter {name!r} of {package} is ignored: {class_and_first_line(error)}; update "
        "or uninstall it",
        PluginWarning,
        stacklevel=3,
    )

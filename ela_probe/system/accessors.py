"""Accessors: attributes such as `analysis.plot` whose class belongs to a later part.

Parts import in one direction, so an analysis can't import the report that draws it. It only leaves
a place: `plot = Accessor()`. The face of the package, which stands above all parts, names the class
that belongs there (`register`). It is imported when the attribute is used first.
"""

import importlib
from typing import Any

_targets: dict[str, str] = {}


class Accessor:
    """An attribute of an object that gives `target(object)`; see `register`."""

    def __set_name__(self, owner: type, name: str) -> None:
        """Remember the attribute as `Class.name`."""
        self._key = f"{owner.__name__}.{name}"

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """The accessor of an instance; of the class this place itself."""
        if instance is None:
            return self
        module, _, name = _targets[self._key].partition(":")
        return getattr(importlib.import_module(module), name)(instance)


def register(key: str, target: str) -> None:
    """Say which class an accessor uses.

    Args:
        key: `Class.attribute`. target: `module:Class`; it is called with the object.
    """
    _targets[key] = target

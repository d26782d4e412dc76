"""One adapter for each model family: where its weights are, and how a site is removed.

In: a model.
Out: its stages of sites, their weights from what hooks read, a smaller model.
May import: errors, sites, system, forward, models.
"""

from ela_probe.adapters.registry import (
    ADAPTERS,
    Adapter,
    DamageAdapter,
    ReadOnlyAdapter,
    StandInAdapter,
    adapter_for,
    cannot_prune,
    register_adapter,
)

__all__ = [
    "ADAPTERS",
    "Adapter",
    "DamageAdapter",
    "ReadOnlyAdapter",
    "StandInAdapter",
    "adapter_for",
    "cannot_prune",
    "register_adapter",
]

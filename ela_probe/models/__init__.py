"""Networks with layer attention: their parts, the registry of names, the zoo.

In: a name and its arguments.
Out: a network.
May import: errors, sites, system, forward.
"""

from ela_probe.models import zoo as _zoo  # noqa: F401  (it registers its families)
from ela_probe.models.registry import (
    FAMILIES,
    ModelFamily,
    ModelSpec,
    create_model,
    register_family,
)

__all__ = ["FAMILIES", "ModelFamily", "ModelSpec", "create_model", "register_family"]

"""ela-probe: redundancy analysis, skip plans and pruning for networks with layer attention."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ela_probe.analysis import Analysis
    from ela_probe.checkpoint import load_checkpoint, save_checkpoint
    from ela_probe.costing import measure_costs
    from ela_probe.costs import CostModel
    from ela_probe.discovery import discover
    from ela_probe.errors import ElaProbeError
    from ela_probe.measure import analyze
    from ela_probe.models import create_model
    from ela_probe.plan import SkipPlan
    from ela_probe.planners import make_plan
    from ela_probe.probe import AttentionProbe
    from ela_probe.pruning import prune
    from ela_probe.training.ela import ELA

__version__ = "0.1.0"

# Imported on first use, so that `import ela_probe` costs nothing.
_HOMES = {
    "ELA": "training.ela",
    "Analysis": "analysis",
    "AttentionProbe": "probe",
    "CostModel": "costs",
    "ElaProbeError": "errors",
    "SkipPlan": "plan",
    "analyze": "measure",
    "create_model": "models",
    "discover": "discovery",
    "load_checkpoint": "checkpoint",
    "make_plan": "planners",
    "measure_costs": "costing",
    "prune": "pruning",
    "save_checkpoint": "checkpoint",
}

__all__ = [
    "ELA",
    "Analysis",
    "AttentionProbe",
    "CostModel",
    "ElaProbeError",
    "SkipPlan",
    "analyze",
    "create_model",
    "discover",
    "load_checkpoint",
    "make_plan",
    "measure_costs",
    "prune",
    "save_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"ela_probe.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

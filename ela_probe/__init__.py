"""ela-probe: redundancy analysis, skip plans and pruning for networks with layer attention."""

import importlib
from typing import TYPE_CHECKING, Any

from ela_probe.system.accessors import register

if TYPE_CHECKING:
    from ela_probe.analysis.analyze import analyze
    from ela_probe.analysis.probe import AttentionProbe
    from ela_probe.analysis.result import Analysis
    from ela_probe.checkpoint import load_checkpoint, save_checkpoint
    from ela_probe.discovery.declared import DeclaredAdapter
    from ela_probe.discovery.discover import discover
    from ela_probe.errors import ElaProbeError
    from ela_probe.models.registry import ModelSpec, create_model
    from ela_probe.pruning.cost_model import CostModel
    from ela_probe.pruning.measure_costs import measure_costs
    from ela_probe.pruning.plan import SkipPlan
    from ela_probe.pruning.planners import make_plan
    from ela_probe.pruning.prune import prune
    from ela_probe.system.versions import __version__
    from ela_probe.training.ela.callback import ELA

# Imported on first use, so that `import ela_probe` costs nothing.
_MODULES = {
    "ELA": "training.ela.callback",
    "Analysis": "analysis.result",
    "AttentionProbe": "analysis.probe",
    "CostModel": "pruning.cost_model",
    "DeclaredAdapter": "discovery.declared",
    "ElaProbeError": "errors",
    "ModelSpec": "models.registry",
    "SkipPlan": "pruning.plan",
    "analyze": "analysis.analyze",
    "create_model": "models.registry",
    "discover": "discovery.discover",
    "load_checkpoint": "checkpoint",
    "make_plan": "pruning.planners",
    "measure_costs": "pruning.measure_costs",
    "prune": "pruning.prune",
    "save_checkpoint": "checkpoint",
    "__version__": "system.versions",
}

__all__ = [
    "ELA",
    "Analysis",
    "AttentionProbe",
    "CostModel",
    "DeclaredAdapter",
    "ElaProbeError",
    "ModelSpec",
    "SkipPlan",
    "__version__",
    "analyze",
    "create_model",
    "discover",
    "load_checkpoint",
    "make_plan",
    "measure_costs",
    "prune",
    "save_checkpoint",
]

# What later parts draw of an object of an earlier one (see `system.accessors`).
register("Analysis.plot", "ela_probe.report.accessors:AnalysisPlots")
register("SkipPlan.plot", "ela_probe.report.accessors:PlanPlots")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"ela_probe.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

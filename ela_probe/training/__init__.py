"""Training and fine-tuning with Lightning: settings, the module, `fit`.

Loaded on first use: the settings alone (`TrainConfig`, `ELAConfig`) import no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ela_probe.training.config import TrainConfig
from ela_probe.training.ela_config import ELAConfig

if TYPE_CHECKING:
    from ela_probe.training.ela import ELA
    from ela_probe.training.fitting import FitResult, TrainingInterrupted, fit
    from ela_probe.training.module import ClassificationModule

__all__ = [
    "ELA",
    "ClassificationModule",
    "ELAConfig",
    "FitResult",
    "TrainConfig",
    "TrainingInterrupted",
    "fit",
]

_HOMES = {"ClassificationModule": "module", "ELA": "ela"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'fitting')}"), name)
    globals()[name] = value
    return value

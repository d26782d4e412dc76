"""Sites and stages: where a model retrieves from earlier layers; finding them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import nn

Kind = Literal["softmax", "unrolled", "channel"]
Action = Literal["keep", "recur", "skip", "drop"]


@dataclass(frozen=True)
class Site:
    """One place where a retrieval happens.

    name: qualified module name (with `@k` where a module fires more than once in a pass).
    tap: qualified name of the module whose inputs are the weights. sources: |S_t|.
    """

    name: str
    tap: str
    sources: int


@dataclass(frozen=True)
class Stage:
    """The ordered sites that share one growing list of sources, and the kind of their weights."""

    name: str
    kind: Kind
    sites: tuple[Site, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(site.sources for site in self.sites)


def discover(model: nn.Module) -> list[Stage]:
    """The stages of a model's layer attention, in forward order. Runs no forward pass.

    Raises:
        ModelError: no adapter knows the model, or it has no layer attention.
    """
    from ela_probe.adapters import adapter_for, unwrap

    model = unwrap(model)
    return adapter_for(model).stages(model)


def fingerprint(stages: list[Stage]) -> str:
    """A SHA-256 over names, kinds and sizes: equal for models whose sites are the same."""
    described = [[s.name, s.kind, [[t.name, t.sources] for t in s.sites]] for s in stages]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()

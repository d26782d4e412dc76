"""Sites declared in a file, for a model that no adapter knows.

The weights must be among the inputs or outputs of some module. Analysis and plans work; pruning
needs an adapter.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ela_probe.adapters.registry import ReadOnlyAdapter
from ela_probe.discovery.capture import Capture
from ela_probe.discovery.sites_file import DeclaredStage, SitesFile
from ela_probe.errors import ModelError, ProbeError
from ela_probe.forward import call, eval_mode, moved, uncompiled, unwrap
from ela_probe.sites import Site, Stage
from ela_probe.system.messages import first_line, shortened

if TYPE_CHECKING:
    from ela_probe.discovery.discover import Discovery


LISTED = 5  # patterns that a message names


class DeclaredAdapter(ReadOnlyAdapter):
    """Reads the sites that a file declares. `discover` counts the sources; pruning is refused."""

    name = "declared"

    def __init__(
        self,
        declared: SitesFile,
        *,
        origin: str = "the sites file",
        counted: Mapping[str, int] | None = None,
    ) -> None:
        self.declared, self.origin = declared, origin
        self._counted = dict(counted or {})

    @classmethod
    def load(cls, path: str | Path) -> "DeclaredAdapter":
        """Read and validate a sites file. Raises OptionError."""
        return cls(SitesFile.load(path), origin=str(path))

    def discover(self, model: nn.Module, example_inputs: Any = None) -> "Discovery":
        """The declared stages of a model.

        Args:
            example_inputs: a small batch, to count the sources where the file does not say them.

        Raises:
            ModelError: a pattern matches nothing, two match the same module, the number of
                sources can't be found or doesn't grow, or the model doesn't take the inputs.
        """
        model = unwrap(model)
        with uncompiled(model):
            return self._discover(model, example_inputs)

    def _discover(self, model: nn.Module, example_inputs: Any) -> "Discovery":
        from ela_probe.discovery.discover import Discovery

        stages = self.stages(model)
        adapter = self
        if any(0 in stage.sizes for stage in stages):
            if example_inputs is None:
                raise ModelError(
                    f"{self.origin} does not declare how many sources the sites have; add "
                    "sources = [1, 2, ...], or give example inputs to count them"
                )
            sources = _count(model, stages, self._chosen_tensors(model), example_inputs)
            adapter = DeclaredAdapter(self.declared, origin=self.origin, counted=sources)
            stages = adapter.stages(model)
        for stage in stages:
            self._check_growth(stage)
        return Discovery(tuple(stages), adapter)

    def matches(self, model: nn.Module) -> bool:
        """Whether every declared stage names modules of the model."""
        return all(part.grouped(_names(model)) for part in self.declared.stage)

    def stages(self, model: nn.Module) -> list[Stage]:
        """The declared stages; 0 sources where `discover` has not counted them."""
        return [stage for stage, _ in self._placed(model)]

    def weights(
        self, model: nn.Module, stage: Stage, captured: Sequence[tuple[Tensor, ...]]
    ) -> list[Tensor]:
        """The declared tensors of one forward pass, with the source axis moved to the end."""
        which = self._chosen_tensors(model)[stage.name]
        chosen = [
            (_chosen(site, tensors, which),)
            for site, tensors in zip(stage.sites, captured, strict=True)
        ]
        return super().weights(model, stage, chosen)

    def _chosen_tensors(self, model: nn.Module) -> dict[str, int]:
        """Which of the tensors read are the weights, by stage."""
        return {stage.name: part.tensor for stage, part in self._placed(model)}

    def _placed(self, model: nn.Module) -> list[tuple[Stage, DeclaredStage]]:
        """The stages that the patterns match, each with its declaration."""
        names = _names(model)
        placed: list[tuple[Stage, DeclaredStage]] = []
        taken: set[str] = set()
        for number, part in enumerate(self.declared.stage):
            grouped = part.grouped(names)
            if not grouped:
                raise ModelError(self._no_match(part, names))
            for label, modules in grouped.items():
                again = [module for module in modules if module in taken]
                if again:
                    raise ModelError(
                        f"{self.origin} declares {again[0]} twice; expected one pattern for each "
                        "module"
                    )
                taken.update(modules)
                name = label or f"stage.{number}"
                if name in {stage.name for stage, _ in placed}:
                    raise ModelError(
                        f"{self.origin} has two stages called {name!r}; give each another name"
                    )
                stage = Stage(name, part.kind, self._sites(part, modules, name))
                placed.append((stage, part))
        return placed

    def _sites(self, part: DeclaredStage, modules: Sequence[str], stage: str) -> tuple[Site, ...]:
        places = [(module, call) for module in modules for call in range(part.calls)]
        sources = part.sources or (0,) * len(places)
        if len(sources) != len(places):
            raise ModelError(
                f"{self.origin} declares {len(sources)} numbers of sources, but stage {stage} has "
                f"{len(places)} sites: {_few(modules)}"
            )
        sites = []
        for (module, index), count in zip(places, sources, strict=True):
            name = module if part.calls == 1 else f"{module}@{index}"
            count = self._counted.get(name, count)
            sites.append(Site(name, module, count, part.reads, index, part.calls, part.axis))
        return tuple(sites)

    def _check_growth(self, stage: Stage) -> None:
        if any(b < a for a, b in zip(stage.sizes, stage.sizes[1:], strict=False)):
            raise ModelError(
                f"{self.origin}: the sources of stage {stage.name} are {list(stage.sizes)}; "
                "expected numbers that grow along the sites. Check axis, or separate the "
                "stages with regex and group"
            )

    def _no_match(self, part: DeclaredStage, names: Sequence[str]) -> str:
        patterns = [shortened(pattern) for pattern in (*part.modules, *part.regex)[:LISTED]]
        near: list[str] = []
        for pattern in patterns:
            near += difflib.get_close_matches(pattern, names, n=3, cutoff=0.3)
        words = {word for p in patterns for word in re.findall(r"[A-Za-z_]{3,}", p)}
        near += [name for name in names if words & set(name.split("."))]
        listed = _few(list(dict.fromkeys(near)) or names)
        return (
            f"{self.origin}: {' and '.join(map(repr, patterns))} matches no module; "
            f"near names are {listed}"
        )


class _Counted(Exception):
    """Ends the counting pass."""


class _Counter(ReadOnlyAdapter):
    """Notes the number of sources at every site, and ends the forward pass."""

    def __init__(self, tensors: Sequence[int]) -> None:
        self.sources: dict[str, int] = {}
        self._tensors = tensors

    def weights(
        self, model: nn.Module, stage: Stage, captured: Sequence[tuple[Tensor, ...]]
    ) -> list[Tensor]:
        for site, tensors, which in zip(stage.sites, captured, self._tensors, strict=True):
            tensor = _chosen(site, tensors, which)
            if not -tensor.ndim <= site.axis < tensor.ndim:
                raise ModelError(
                    f"{site.name}: got axis {site.axis} of a tensor of shape {list(tensor.shape)}; "
                    "expected one of its axes"
                )
            self.sources[site.name] = tensor.shape[site.axis]
        raise _Counted

    def matches(self, model: nn.Module) -> bool:
        return True

    def stages(self, model: nn.Module) -> list[Stage]:
        return []


def _count(
    model: nn.Module, stages: Sequence[Stage], tensors: Mapping[str, int], inputs: Any
) -> dict[str, int]:
    """The number of sources of every site, from one pass in eval mode."""
    sites = [(site, tensors[stage.name]) for stage in stages for site in stage.sites]
    numbered = tuple(replace(site, sources=t + 1) for t, (site, _) in enumerate(sites))
    counter = _Counter([which for _, which in sites])
    counting = Stage("counting", "softmax", numbered)
    capture = Capture(model, counter, stages=[counting], receive=lambda weights: None)
    try:
        with torch.no_grad(), eval_mode(model), capture:
            call(model, moved(inputs, model))
    except _Counted:
        pass
    except ProbeError as error:
        raise ModelError(f"{error} (or declare how often it fires: calls = 2)") from error
    except (RuntimeError, TypeError, ValueError) as error:
        raise ModelError(
            f"the model does not take the example inputs ({first_line(error)}); "
            "give a batch that it takes"
        ) from error
    return counter.sources


def _chosen(site: Site, tensors: tuple[Tensor, ...], which: int) -> Tensor:
    if which >= len(tensors):
        raise ModelError(
            f"{site.name}: its {site.reads} hold {len(tensors)} tensors, but tensor = {which} is "
            f"declared; expected {'0 to ' + str(len(tensors) - 1) if tensors else 'another module'}"
        )
    return tensors[which]


def _names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules() if name]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")

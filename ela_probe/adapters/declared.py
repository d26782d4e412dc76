"""Sites declared in a TOML file: for a model that no adapter knows and whose weights some module
takes in or puts out. Analysis and plans work; pruning takes an adapter."""

import difflib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from torch import Tensor, nn

from ela_probe.adapters import ReadOnlyAdapter, unwrap
from ela_probe.errors import ModelError, OptionError, ProbeError
from ela_probe.sites import Kind, Reads, Site, Stage

if TYPE_CHECKING:
    from ela_probe.discovery import Discovery


class DeclaredStage(BaseModel):
    """One `[[stage]]` of the file: which modules retrieve, and where their weights are.

    modules: globs over qualified module names; `*` stays within one part of a name, `**` crosses
    dots. regex: patterns that match whole names instead. group: a capture group of the regex, by
    name or number, whose text tells stages apart. reads, axis, kind: as in Site and Stage.
    tensor: which of the tensors read, from 0. calls: how often a module retrieves in a pass.
    sources: the number of sources of every site of a stage; counted in a forward pass if left out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = None
    modules: tuple[str, ...] = ()
    regex: tuple[str, ...] = ()
    group: str | int | None = None
    reads: Reads = "output"
    axis: int = -1
    tensor: int = Field(0, ge=0)
    kind: Kind = "softmax"
    calls: int = Field(1, ge=1)
    sources: tuple[int, ...] | None = None

    @field_validator("modules", "regex", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("regex")
    @classmethod
    def _compiles(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression ({error})") from error
        return value

    @field_validator("kind")
    @classmethod
    def _plain(cls, value: Kind) -> Kind:
        if value == "unrolled":
            raise ValueError(
                "unrolled weights are computed from gates and decays, which takes an adapter; "
                "expected 'softmax' or 'channel'"
            )
        return value

    @model_validator(mode="after")
    def _patterns(self) -> "DeclaredStage":
        if not self.modules and not self.regex:
            raise ValueError("it names no modules; expected modules = 'GLOB' or regex = 'PATTERN'")
        if self.group is not None:
            known: set[str | int] = {
                key
                for pattern in map(re.compile, self.regex)
                for key in (*range(1, pattern.groups + 1), *pattern.groupindex)
            }
            if self.modules or self.group not in known:
                raise ValueError(
                    f"group {self.group!r} is no capture group of its regex; expected "
                    f"{' or '.join(map(repr, sorted(known, key=str))) or 'a regex with groups'}"
                )
        return self

    def grouped(self, names: Sequence[str]) -> dict[str, list[str]]:
        """The matching module names by stage, both in the model's order."""
        patterns = [re.compile(p) for p in (*map(_glob, self.modules), *self.regex)]
        stages: dict[str, list[str]] = {}
        for name in names:
            match = next((m for m in (p.fullmatch(name) for p in patterns) if m), None)
            if match is None:
                continue
            label = "" if self.group is None else str(match[self.group])
            stages.setdefault(".".join(part for part in (self.name, label) if part), []).append(
                name
            )
        return stages


class SitesFile(BaseModel):
    """The whole file: one or more `[[stage]]`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: tuple[DeclaredStage, ...] = Field(min_length=1)


class DeclaredAdapter(ReadOnlyAdapter):
    """Reads what a sites file declares. `discover` counts the sources; nothing can be pruned."""

    name = "declared"

    def __init__(self, declared: SitesFile, *, origin: str = "the sites file") -> None:
        self.declared, self.origin = declared, origin
        self._tensors: dict[str, int] = {}
        self._sources: dict[str, int] = {}

    @classmethod
    def load(cls, path: str | Path) -> "DeclaredAdapter":
        """Read and validate a sites file.

        Raises:
            OptionError: no such file, no TOML, or not what a sites file holds.
        """
        try:
            table = _toml(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise OptionError(
                f"cannot read the sites file {path}: {reason}; expected TOML with [[stage]] tables "
                "(docs/adapters.md)"
            ) from error
        try:
            return cls(SitesFile.model_validate(table), origin=str(path))
        except ValidationError as error:
            from ela_probe.plan import explain

            raise OptionError(
                f"{path} is no valid sites file: {explain(error)}; see docs/adapters.md"
            ) from error

    def discover(self, model: nn.Module, example_inputs: Any = None) -> "Discovery":
        """The declared stages of a model.

        Args:
            example_inputs: a small batch, to count the sources where they are not declared.

        Raises:
            ModelError: a pattern matches nothing, two match the same module, the number of
                sources can't be found or doesn't grow, or the model doesn't take the inputs.
        """
        from ela_probe.discovery import Discovery

        model = unwrap(model)
        counted = DeclaredAdapter(self.declared, origin=self.origin)
        sites = counted._placed(model)
        if any(site.sources == 0 for stage in sites for site in stage.sites):
            if example_inputs is None:
                raise ModelError(
                    f"{self.origin} does not declare how many sources the sites have; add "
                    "sources = [1, 2, ...], or give example inputs to count them"
                )
            counted._sources = _counted(model, sites, counted._tensors, example_inputs)
        stages = counted.stages(model)
        for stage in stages:
            self._check_growth(stage)
        return Discovery(tuple(stages), counted)

    def matches(self, model: nn.Module) -> bool:
        return all(part.grouped(_names(model)) for part in self.declared.stage)

    def stages(self, model: nn.Module) -> list[Stage]:
        """The declared stages; 0 sources where `discover` has not counted them."""
        return [
            Stage(
                stage.name,
                stage.kind,
                tuple(
                    Site(
                        s.name, s.module, self._sources.get(s.name, s.sources),
                        s.reads, s.call, s.calls, s.axis,
                    )
                    for s in stage.sites
                ),
            )
            for stage in self._placed(model)
        ]  # fmt: skip

    def weights(
        self, model: nn.Module, stage: Stage, captured: Sequence[tuple[Tensor, ...]]
    ) -> list[Tensor]:
        chosen = [
            (self._tensor(site, tensors),)
            for site, tensors in zip(stage.sites, captured, strict=True)
        ]
        return super().weights(model, stage, chosen)

    def _placed(self, model: nn.Module) -> list[Stage]:
        """The sites that the patterns match; 0 sources where they are not declared."""
        names = _names(model)
        stages: list[Stage] = []
        taken: set[str] = set()
        for number, part in enumerate(self.declared.stage):
            grouped = part.grouped(names)
            if not grouped:
                raise ModelError(self._no_match(part, names))
            for label, modules in grouped.items():
                sites = self._sites(part, modules, label)
                again = [site.module for site in sites if site.module in taken]
                if again:
                    raise ModelError(
                        f"{self.origin} declares {again[0]} twice; make the patterns tell apart"
                    )
                taken.update(modules)
                stages.append(Stage(label or f"stage.{number}", part.kind, tuple(sites)))
        return stages

    def _sites(self, part: DeclaredStage, modules: Sequence[str], label: str) -> list[Site]:
        places = [(module, call) for module in modules for call in range(part.calls)]
        sources = part.sources or (0,) * len(places)
        if len(sources) != len(places):
            raise ModelError(
                f"{self.origin} declares {len(sources)} numbers of sources, but stage "
                f"{label or 'without a name'} has {len(places)} sites: {_few(modules)}"
            )
        sites = []
        for (module, call), count in zip(places, sources, strict=True):
            name = module if part.calls == 1 else f"{module}@{call}"
            self._tensors[name] = part.tensor
            sites.append(Site(name, module, count, part.reads, call, part.calls, part.axis))
        return sites

    def _tensor(self, site: Site, tensors: tuple[Tensor, ...]) -> Tensor:
        return _chosen(site, tensors, self._tensors.get(site.name, 0))

    def _check_growth(self, stage: Stage) -> None:
        if any(b < a for a, b in zip(stage.sizes, stage.sizes[1:], strict=False)):
            raise ModelError(
                f"{self.origin}: the sources of stage {stage.name} are {list(stage.sizes)}; "
                "expected numbers that grow along the sites. Check axis, or tell stages apart "
                "with regex and group"
            )

    def _no_match(self, part: DeclaredStage, names: Sequence[str]) -> str:
        patterns = (*part.modules, *part.regex)
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
    """Takes the sizes of what the probe read at the sites, and ends the pass."""

    def __init__(self, tensors: Mapping[str, int]) -> None:
        self.sources: dict[str, int] = {}
        self._tensors = tensors

    def weights(
        self, model: nn.Module, stage: Stage, captured: Sequence[tuple[Tensor, ...]]
    ) -> list[Tensor]:
        for site, tensors in zip(stage.sites, captured, strict=True):
            tensor = _chosen(site, tensors, self._tensors[site.name])
            if not -tensor.ndim <= site.axis < tensor.ndim:
                raise ModelError(
                    f"{site.name}: axis {site.axis} of a tensor of shape {list(tensor.shape)} "
                    "came; expected one of its axes"
                )
            self.sources[site.name] = tensor.shape[site.axis]
        raise _Counted

    def matches(self, model: nn.Module) -> bool:
        return True

    def stages(self, model: nn.Module) -> list[Stage]:
        return []


def _counted(
    model: nn.Module, stages: Sequence[Stage], tensors: Mapping[str, int], inputs: Any
) -> dict[str, int]:
    """The number of sources of every site, from one pass in eval mode under a probe."""
    import torch

    from ela_probe.discovery import Discovery, call
    from ela_probe.inputs import mapped
    from ela_probe.probe import AttentionProbe

    sites = [site for stage in stages for site in stage.sites]
    numbered = tuple(
        Site(s.name, s.module, t + 1, s.reads, s.call, s.calls, s.axis) for t, s in enumerate(sites)
    )
    counter = _Counter(tensors)
    found = Discovery((Stage("counting", "softmax", numbered),), counter)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad(), AttentionProbe(model, discovery=found):
            call(model.eval(), mapped(inputs, lambda tensor: tensor.to(device)))
    except _Counted:
        pass
    except ProbeError as error:
        raise ModelError(f"{error} (or declare how often it fires: calls = 2)") from error
    except (RuntimeError, TypeError, ValueError) as error:
        raise ModelError(
            f"the model does not take the example inputs ({str(error).splitlines()[0][:150]}); "
            "give a batch that it takes"
        ) from error
    finally:
        for module, training in modes:
            module.training = training
    return counter.sources


def _chosen(site: Site, tensors: tuple[Tensor, ...], which: int) -> Tensor:
    if which >= len(tensors):
        raise ModelError(
            f"{site.name}: its {site.reads} hold {len(tensors)} tensors, and tensor = {which} was "
            f"declared; expected {'0 to ' + str(len(tensors) - 1) if tensors else 'another module'}"
        )
    return tensors[which]


def _glob(pattern: str) -> str:
    """A glob over dotted names as a regular expression."""
    parts = re.split(r"(\*\*|\*|\?)", pattern)
    meaning = {"**": ".*", "*": "[^.]*", "?": "[^.]"}
    return "".join(meaning.get(part, re.escape(part)) for part in parts)


def _names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules() if name]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _toml(text: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)

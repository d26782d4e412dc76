"""The sites file: a TOML file that says which modules retrieve, and where their weights are."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import re2
from pydantic import Field, field_validator, model_validator

from ela_probe.errors import OptionError
from ela_probe.sites import Kind
from ela_probe.system.messages import shortened
from ela_probe.system.reading import LARGEST_BY_HAND, read_document, refuse_deep, refusing
from ela_probe.system.validation import Strict

MOST_CALLS = 1000


class DeclaredStage(Strict):
    """One `[[stage]]` of the file: which modules retrieve, and where their weights are.

    modules: globs over qualified module names; `*` stays within one part of a name, `**` crosses
    dots. regex: patterns of RE2 that match whole names instead. group: a capture group of the
    regex, by name or number, whose text tells stages apart. reads, axis, kind: as in Site and
    Stage.
    tensor: which of the tensors read, from 0. calls: how often a module retrieves in a pass.
    sources: the number of sources of every site of a stage; counted in a forward pass if left out.
    """

    name: str | None = None
    modules: tuple[str, ...] = ()
    regex: tuple[str, ...] = ()
    group: str | int | None = None
    reads: Literal["inputs", "output", "softmax"] = "output"
    axis: int = -1
    tensor: int = Field(0, ge=0)
    kind: Kind = "softmax"
    calls: int = Field(1, ge=1, le=MOST_CALLS)
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
                _compiled(pattern)
            except re2.error as error:
                reason = shortened(error.args[0].decode(errors="replace"))
                raise ValueError(
                    f"{shortened(pattern)!r} is no regular expression of RE2 ({reason}), which has "
                    "no look-around and no back-references"
                ) from error
        return value

    @field_validator("kind")
    @classmethod
    def _plain(cls, value: Kind) -> Kind:
        if value == "unrolled":
            raise ValueError(
                "unrolled weights are computed from gates and decays, which takes an adapter; "
                "expected 'softmax' or 'channel'"
            )
        if value in ("static", "signed"):
            raise ValueError(
                f"{value} weights are found by observation or by an adapter, since they are not "
                "read alone; expected 'softmax' or 'channel'"
            )
        return value

    @model_validator(mode="after")
    def _names_some_modules(self) -> "DeclaredStage":
        if not self.modules and not self.regex:
            raise ValueError("it names no modules; expected modules = 'GLOB' or regex = 'PATTERN'")
        if self.group is not None:
            known: set[str | int] = {
                key
                for pattern in map(_compiled, self.regex)
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
        patterns = [_compiled(p) for p in (*map(_glob, self.modules), *self.regex)]
        stages: dict[str, list[str]] = {}
        for name in names:
            match = next((m for m in (p.fullmatch(name) for p in patterns) if m), None)
            if match is None:
                continue
            label = "" if self.group is None else str(match.group(self.group))
            stages.setdefault(".".join(part for part in (self.name, label) if part), []).append(
                name
            )
        return stages


class SitesFile(Strict):
    """The whole file: one or more `[[stage]]`."""

    stage: tuple[DeclaredStage, ...] = Field(min_length=1)

    @classmethod
    def load(cls, path: str | Path) -> "SitesFile":
        """Read and validate a sites file.

        Raises:
            OptionError: no such file, no TOML, or not what a sites file holds.
        """
        expected = "TOML with [[stage]] tables (docs/adapters.md)"
        text = read_document(
            path,
            what="the sites file",
            expected=expected,
            error=OptionError,
            most=LARGEST_BY_HAND,
        )
        with refusing(OptionError, f"cannot read the sites file {path}", f"expected {expected}"):
            refuse_deep(text)
            table = _toml(text)
        with refusing(
            OptionError, f"{path} is no valid sites file", "see docs/adapters.md", model=cls
        ):
            return cls.model_validate(table)


def _compiled(pattern: str) -> Any:
    """A regular expression of RE2: its time is linear in the length of a name.

    Python's own takes years for some patterns. Raises re2.error.
    """
    options = re2.Options()
    options.log_errors = False
    return re2.compile(pattern, options)


def _glob(pattern: str) -> str:
    """A glob over dotted names as a regular expression."""
    parts = re.split(r"(\*\*|\*|\?)", pattern)
    meaning = {"**": ".*", "*": "[^.]*", "?": "[^.]"}
    return "".join(meaning.get(part, re.escape(part)) for part in parts)


def _toml(text: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)

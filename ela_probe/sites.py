"""Sites and stages: where a model retrieves from earlier layers."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Kind = Literal["softmax", "unrolled", "channel"]
Action = Literal["keep", "recur", "skip", "drop"]
Reads = Literal["inputs", "output", "softmax"]


@dataclass(frozen=True)
class Site:
    """One place where a retrieval happens, and where its weights can be read.

    name: qualified module name, with `@k` where a module retrieves more than once in a pass.
    sources: |S_t|. module: qualified name of the module to watch. reads: what of it is read: the
    inputs or the output of its forward, or the outcome of a softmax function called inside it
    (not inside its submodules). call: which of the firings in a pass this is, of `calls` in all.
    axis: the axis of what is read that runs over the sources. batch_axis: the one that runs over
    the samples; None where the weights don't depend on the input.
    """

    name: str
    module: str
    sources: int
    reads: Reads = "inputs"
    call: int = 0
    calls: int = 1
    axis: int = -1
    batch_axis: int | None = 0


@dataclass(frozen=True)
class Stage:
    """The ordered sites that share one growing list of sources, and the kind of their weights.

    carried_over: the next stage reads this one's sources, so that all of them are needed.
    """

    name: str
    kind: Kind
    sites: tuple[Site, ...]
    carried_over: bool = False

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(site.sources for site in self.sites)


def fingerprint(stages: Sequence[Stage]) -> str:
    """A SHA-256 over names, kinds and sizes: equal for models whose sites are the same."""
    content = [[s.name, s.kind, [[t.name, t.sources] for t in s.sites]] for s in stages]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


class NamedSources(Protocol):
    """What `describe` reads of a site: its name and its number of sources."""

    @property
    def name(self) -> str: ...
    @property
    def sources(self) -> int: ...


class SitesOfOneKind(Protocol):
    """What `describe` reads of a stage, of a model, a plan or measured costs."""

    @property
    def kind(self) -> Kind: ...
    @property
    def sites(self) -> Sequence[NamedSources]: ...


def describe(stages: Iterable[SitesOfOneKind]) -> dict[str, str]:
    """Every site in words, by its name.

    >>> describe([Stage("stack", "softmax", (Site("layers.0", "layers.0", 1),))])
    {'layers.0': 'softmax, 1 sources'}
    """
    return {
        site.name: f"{stage.kind}, {site.sources} sources"
        for stage in stages
        for site in stage.sites
    }


def differences(
    expected: Mapping[str, str], actual: Mapping[str, str], *, known: str, found: str
) -> str:
    """What differs between two sets of sites (see `describe`), in one line for a message.

    Args:
        known: where the expected sites come from, such as "the plan". found: where the actual
            ones come from, such as "the model".
    """
    lines = [f"{n} ({expected[n]}) is not in {found}" for n in expected if n not in actual]
    lines += [f"{n} ({actual[n]}) is not in {known}" for n in actual if n not in expected]
    lines += [
        f"{n} has {actual[n]} in {found}, {expected[n]} in {known}"
        for n in expected
        if n in actual and expected[n] != actual[n]
    ]
    more = f"; and {len(lines) - 4} more" if len(lines) > 4 else ""
    return ("; ".join(lines[:4]) or "the fingerprint differs") + more

"""Sites and stages: where a model retrieves from earlier layers."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

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
    described = [[s.name, s.kind, [[t.name, t.sources] for t in s.sites]] for s in stages]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def described(sites: Iterable[tuple[str, str, int]]) -> dict[str, str]:
    """From kind, name and number of sources of each site: by name what it is, in words."""
    return {name: f"{kind}, {sources} sources" for kind, name, sources in sites}


def differences(
    expected: Mapping[str, str], actual: Mapping[str, str], *, known: str, found: str
) -> str:
    """What differs between sites as `described` gives them, in one line for a message.

    Args:
        known: what the expected sites stand in, as "the plan". found: what the actual ones do.
    """
    told = [f"{n} ({expected[n]}) is not in {found}" for n in expected if n not in actual]
    told += [f"{n} ({actual[n]}) is not in {known}" for n in actual if n not in expected]
    told += [
        f"{n} has {actual[n]} in {found}, {expected[n]} in {known}"
        for n in expected
        if n in actual and expected[n] != actual[n]
    ]
    more = f"; and {len(told) - 4} more" if len(told) > 4 else ""
    return ("; ".join(told[:4]) or "the fingerprint differs") + more

"""Sites and stages: where a model retrieves from earlier layers."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ela_probe.errors import PlanError

Kind = Literal["softmax", "unrolled", "channel", "static", "signed"]
Action = Literal["keep", "recur", "skip", "drop", "affine"]
Reads = Literal["inputs", "output", "softmax", "sum"]

# The actions under which a retrieval is computed. After the others nothing is retrieved.
FORMED: tuple[Action, ...] = ("keep", "recur")

# Kinds of plain networks that mix: what is left of a stage whose sites are all skipped still runs.
OPTIONAL: tuple[Kind, ...] = ("static", "signed")

# How many differences between two sets of sites a message lists.
LISTED = 4


@dataclass(frozen=True)
class Site:
    """One place where a retrieval happens, and where its weights can be read.

    name: qualified module name, with `@k` where a module retrieves more than once in a pass.
    sources: |S_t|. module: qualified name of the module to hook. reads: what is read there: the
    inputs or the output of its forward, the result of a softmax function that it calls itself (not
    in a submodule), or the weights and the result of a weighted sum of its own. call: the index of
    this firing among the `calls` that the module has in a pass. axis: the axis of the tensor read
    that runs over the sources. batch_axis: the axis that runs over the samples; None where the
    weights don't depend on the input. operand: which of the two operands of a weighted sum the
    weights are. values_axis: the axis of its result that runs over the samples.
    """

    name: str
    module: str
    sources: int
    reads: Reads = "inputs"
    call: int = 0
    calls: int = 1
    axis: int = -1
    batch_axis: int | None = 0
    operand: int = 0
    values_axis: int = 0


@dataclass(frozen=True)
class Stage:
    """The ordered sites that share one growing list of sources, and the kind of their weights.

    carried_over: whether the next stage reads this one's sources, so that all of them are needed.
    """

    name: str
    kind: Kind
    sites: tuple[Site, ...]
    carried_over: bool = False

    @property
    def sizes(self) -> tuple[int, ...]:
        """|S_t| for every site."""
        return tuple(site.sources for site in self.sites)


class NamedSources(Protocol):
    """A site of a model, a plan or measured costs: its name and its number of sources."""

    @property
    def name(self) -> str:
        """The name of the site."""

    @property
    def sources(self) -> int:
        """Its number of sources."""


class NamedStage(Protocol):
    """A stage of a model, a plan or measured costs."""

    @property
    def name(self) -> str:
        """The name of the stage."""

    @property
    def kind(self) -> Kind:
        """The kind of its weights."""

    @property
    def sites(self) -> Sequence[NamedSources]:
        """Its sites, in order."""


def has_divergences(kind: Kind) -> bool:
    """Whether weights of a kind are distributions, so that they have divergences.

    Of `signed` weights the mixed values are compared instead.
    """
    return kind != "signed"


def fingerprint(stages: Sequence[NamedStage]) -> str:
    """A SHA-256 of names, kinds and sizes in order: equal for models with the same sites."""
    content = [[s.name, s.kind, [[t.name, t.sources] for t in s.sites]] for s in stages]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def is_needed(position: int, last_formed: int, *, carried_over: bool) -> bool:
    """Whether the site at `position` of a stage is formed, or a later retrieval reads its source.

    This is the one rule for what may be dropped at the end of a stage. A retrieval reads the
    sources before it, so nothing reads those behind the last retrieval that is formed. Where the
    next stage reads this one's sources (`Stage.carried_over`), all of them are needed.

    Args:
        last_formed: the position of the stage's last site whose action is in FORMED.
    """
    return carried_over or position <= last_formed


def last_formed(actions: Sequence[Action]) -> int:
    """The position of a stage's last retrieval that is formed; -1 if none is.

    >>> last_formed(["keep", "recur", "skip"])
    1
    """
    return max((t for t, action in enumerate(actions) if action in FORMED), default=-1)


def drop_unread(actions: Sequence[Action], *, carried_over: bool) -> list[Action]:
    """A stage's actions with `drop` in place of each `skip` whose source nothing reads.

    >>> drop_unread(["keep", "skip", "keep", "skip"], carried_over=False)
    ['keep', 'skip', 'keep', 'drop']
    >>> drop_unread(["keep", "skip", "keep", "skip"], carried_over=True)
    ['keep', 'skip', 'keep', 'skip']
    """
    last = last_formed(actions)
    return [
        "drop" if action == "skip" and not is_needed(t, last, carried_over=carried_over) else action
        for t, action in enumerate(actions)
    ]


def describe(stages: Iterable[NamedStage]) -> dict[str, str]:
    """Every site by its name, in words.

    >>> describe([Stage("stack", "softmax", (Site("layers.0", "layers.0", 1),))])
    {'layers.0': 'softmax, 1 source'}
    """
    return {
        site.name: f"{stage.kind}, {site.sources} source{'' if site.sources == 1 else 's'}"
        for stage in stages
        for site in stage.sites
    }


def site_differences(
    recorded: Sequence[NamedStage], actual: Sequence[NamedStage], *, known: str, found: str
) -> list[str]:
    """How two sets of stages differ: sites that one lacks, other kinds or sizes, another order.

    Args:
        known: where the recorded stages come from, such as "the plan".
        found: where the actual stages come from, such as "the model".
    """
    expected, present = describe(recorded), describe(actual)
    lines = [f"{n} ({expected[n]}) is not in {found}" for n in expected if n not in present]
    lines += [f"{n} ({present[n]}) is not in {known}" for n in present if n not in expected]
    lines += [
        f"{n} has {present[n]} in {found}, {expected[n]} in {known}"
        for n in expected
        if n in present and expected[n] != present[n]
    ]
    if lines:
        return lines
    order = zip(expected, present, strict=True)
    moved = next(((ours, theirs) for ours, theirs in order if ours != theirs), None)
    if moved is not None:
        return [f"{moved[0]} stands where {found} has {moved[1]}: the sites are in another order"]
    return ["the stages have other names or begin at other sites, or the fingerprint was edited"]


def check_same_sites(
    recorded: Sequence[NamedStage],
    recorded_fingerprint: str,
    actual: Sequence[Stage],
    *,
    known: str,
    claim: str,
    model: str | None,
    found: str,
    advice: str,
) -> None:
    """Raise PlanError, listing the differences, unless a file was made for these very sites.

    Args:
        recorded: the stages that the file names, with its fingerprint.
        actual: the stages of a model or an analysis.
        known, claim: what the file is and what is wrong with it, such as "the plan" and "was made
            for another model". model: the model that it names.
        found: where the actual stages come from, such as "the model".
        advice: what to do, as a sentence without its full stop.
    """
    if recorded_fingerprint == fingerprint(recorded) == fingerprint(actual):
        return
    lines = site_differences(recorded, actual, known=known, found=found)
    more = f"; and {len(lines) - LISTED} more" if len(lines) > LISTED else ""
    raise PlanError(
        f"{known} {claim} ({model or 'unknown'}, {len(describe(recorded))} sites; {found} has "
        f"{len(describe(actual))}): {'; '.join(lines[:LISTED])}{more}. {advice}"
    )

"""A fault at any moment of any verb that writes: nothing is lost, nothing is half written.

By default a part is run. TRUST_LONG=1 runs all: every verb; kills at TRUST_EVENTS events of each
(40; all renames first), other faults at a third as many, and kills at TRUST_MOMENTS random moments
(50). What a verb changes on the disk is found by looking on (`tests.support.faults`), so that a
place that writes can't be forgotten; `VERBS` names the verbs.
"""

import json
import math
import os
import random
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.fault_cases import VERBS, Harness, harness, write_template

LONG = os.environ.get("TRUST_LONG") == "1"
MOST = int(os.environ.get("TRUST_EVENTS", "40"))
MOMENTS = int(os.environ.get("TRUST_MOMENTS", "50"))
CODES = {"kill": -9, "int": 130, "term": 143, "full": 2, "readonly": 2}
# Each takes many seconds: 6 events at most, and no random moments.
LARGE = {"demo", "benchmarks damage", "ablate with tuning", "analyze with figures"}
RENAMES = ("os.rename", "os.link")


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    folder = tmp_path_factory.mktemp("faults")
    (folder / "template").mkdir()
    (folder / "scratch").mkdir()
    with harness(write_template(folder / "template"), folder / "scratch") as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(faults: Harness) -> Any:
    """The outcome of a verb without a fault, with its events."""
    known: dict[str, Any] = {}

    def of(verb: str) -> Any:
        if verb not in known:
            known[verb] = found = faults.run(verb, "events")
            assert found["code"] == 0, found["text"]
            assert len(json.loads(found["results"])) == len(VERBS[verb].results)
            assert not found["half"], found["half"]
            assert not found["temporary"]
            assert not found["lost"]
        return known[verb]

    return of


def chosen(events: list[str], most: int, *, renames_only: bool = False) -> list[int]:
    """Numbers of at most so many events: the renames, then others, evenly spread."""
    first = [n for n, event in enumerate(events) if event.startswith(RENAMES)]
    other = [] if renames_only else [n for n in range(len(events)) if n not in set(first)]
    if len(first) >= most:
        return spread(first, most)
    return sorted([*first, *spread(other, most - len(first))])


def spread(numbers: list[int], most: int) -> list[int]:
    """At most so many of the numbers, the last one among them."""
    return numbers[:: -max(1, math.ceil(len(numbers) / max(1, most)))]


def check(found: Any, whole: Any, kind: str, where: str) -> None:
    """What must hold after a fault of this kind."""
    text = found["text"]
    name = kind.partition(":")[0]
    assert not found["half"], (where, found["half"])
    assert not found["lost"], (where, found["lost"], text)
    assert found["again"]["code"] == 0, (where, found["again"]["text"])
    assert found["results"] == whole["results"], where
    if name in ("kill", "after"):
        assert found["code"] in (-9, *([0] if name == "after" else [])), (where, text)
        return
    assert "Traceback" not in text, (where, text)
    if found["code"] != 0:  # where no event was left to fail, it ends well
        assert found["code"] == CODES.get(name, 2), (where, text)
        assert text.splitlines()[-1].startswith("error: "), (where, text)
    if name != "readonly":  # where nothing can be removed either
        assert not found["temporary"], (where, found["temporary"], text)


PART = {
    "kill": ("train", "analyze over an analysis", "plan", "train over a run", "prune hf"),
    "full": ("prune", "analyze"),
    "readonly": ("plan", "prune hf over a directory"),
    "term": ("finetune",),
}
CASES = [
    (kind, verb)
    for kind, part in (dict.fromkeys(CODES, VERBS) if LONG else PART).items()
    for verb in part
    if verb in VERBS and not (verb in LARGE and kind in ("int", "term"))
]


@pytest.mark.parametrize(("kind", "verb"), CASES)
def test_a_fault_at_an_event_loses_nothing(
    faults: Harness, undisturbed: Any, kind: str, verb: str
) -> None:
    whole = undisturbed(verb)
    events = whole["events"]
    most = {"kill": 5, "full": 2}.get(kind, 1)
    if LONG:
        most = MOST if kind == "kill" else max(1, MOST // 3)
        most = min(most, 6 if kind == "kill" else 2) if verb in LARGE else most
    for number in chosen(events, most, renames_only=not LONG and kind == "kill"):
        found = faults.run(verb, kind, number)
        check(found, whole, kind, f"{verb}, {kind} at event {number}: {events[number]}")


SIZES = [(size, verb) for verb in VERBS if verb not in LARGE for size in (0, 1000, 30_000)]


@pytest.mark.parametrize(("size", "verb"), SIZES if LONG else [(1000, "prune"), (30_000, "train")])
def test_a_file_that_cannot_grow_is_not_left_half_written(
    faults: Harness, undisturbed: Any, size: int, verb: str
) -> None:
    """The kernel refuses the write itself, in the middle of a file."""
    kind = f"size:{size}"
    check(faults.run(verb, kind), undisturbed(verb), kind, f"{verb}, {kind}")


@pytest.mark.skipif(not LONG, reason="random moments are part of the long form: TRUST_LONG=1")
@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in LARGE])
def test_kills_at_random_moments(faults: Harness, undisturbed: Any, verb: str) -> None:
    whole = undisturbed(verb)
    moments = random.Random(verb)
    for _ in range(MOMENTS):
        kind = f"after:{moments.uniform(0, 1.1 * whole['seconds']):.3f}"
        check(faults.run(verb, kind), whole, kind, f"{verb}, {kind}")


def test_every_verb_that_writes_is_a_case() -> None:
    """Verbs that only print, or only write what another verb does, are named here."""
    from ela_probe_cli.app import app

    printing = {"discover", "models", "recipes", "compare-analyses"}
    verbs = {str(command.name) for command in app.registered_commands}
    assert {verb.words[0] for verb in VERBS.values()} - {"benchmarks"} == verbs - printing

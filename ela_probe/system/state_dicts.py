"""State dicts as training scripts write them: found in a file by structure, fitted by names.

`find_weights` finds the largest mapping of names to tensors in nested containers. `fit_names`
removes what wraps the names of a model (`module.`, `model.`, ...) and says what is left over.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

AVERAGED = re.compile(r"ema|swa|averag|shadow|teacher", re.IGNORECASE)
OPTIMIZER = re.compile(r"optim|grad|momentum|exp_avg", re.IGNORECASE)
WRAPPERS = ("module.", "_orig_mod.")
# Counters of torch's AveragedModel and of profilers, at the end of a name.
BOOKKEEPING = ("n_averaged", "total_ops", "total_params")
BATCHES = "num_batches_tracked"
DEEPEST = 6


@dataclass(frozen=True)
class Weights:
    """A state dict that was found: its tensors by name, where they were, what to tell the user."""

    state: dict[str, Tensor]
    place: str = ""
    note: str | None = None


def find_weights(stored: Any) -> Weights | None:
    """The largest mapping of names to tensors in nested dicts, lists and tuples.

    Averaged weights (`model_ema`) are read only where there are no plain ones of comparable size:
    training scripts measure and choose their best epoch on the plain ones. An optimizer's state is
    no candidate. None where there is no such mapping.
    """
    if not isinstance(stored, Mapping | list | tuple):
        return None
    candidates = [
        Weights(state, ".".join(path))
        for path, state in _mappings(stored, (), set())
        if not any(OPTIMIZER.search(key) for key in path)
    ]
    if not candidates:
        return None
    largest = max(len(found.state) for found in candidates)
    large = [found for found in candidates if 2 * len(found.state) >= largest]
    plain = [found for found in large if not AVERAGED.search(found.place)]
    averaged = [found for found in large if AVERAGED.search(found.place)]
    chosen = max(plain or averaged, key=lambda found: len(found.state))
    note = None
    if not plain:
        note = f"read the averaged weights under {chosen.place!r}; the file has no others"
    elif len(large) > 1:
        others = ", ".join(repr(found.place) for found in large if found is not chosen)
        note = f"read the weights under {chosen.place!r}, not those under {others}"
    return Weights(chosen.state, chosen.place, note)


def _mappings(
    stored: Any, path: tuple[str, ...], seen: set[int]
) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Every mapping with tensors by name, and the keys that lead to it; each container once."""
    if len(path) > DEEPEST or id(stored) in seen:
        return
    seen.add(id(stored))
    if isinstance(stored, Mapping):
        tensors = {
            name: value
            for name, value in stored.items()
            if isinstance(name, str) and isinstance(value, Tensor)
        }
        if tensors:
            yield path, tensors
        items = list(stored.items())
    else:
        items = list(enumerate(stored))
    for key, value in items:
        if isinstance(value, Mapping | list | tuple):
            yield from _mappings(value, (*path, str(key)), seen)


@dataclass(frozen=True)
class Fit:
    """A state dict with a model's names.

    Attributes:
        state: the tensors that the model has a place for.
        problems: what is missing, unknown or of another shape, one sentence part each.
        note: what was removed from the names, ignored or filled in, if anything.
        resized: by name the shape in the file and the model's, where they differ.
    """

    state: dict[str, Tensor]
    problems: tuple[str, ...]
    note: str | None
    resized: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]


def fit_names(
    state: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    *,
    rename: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = dict,
) -> Fit:
    """Give the tensors of a file the names of a model.

    Removes wrappers' prefixes and one prefix before the model's names, chosen so that most names
    match. Ignored are counters of profilers, and parts of the file that the model does not have at
    all, such as an auxiliary head. A tensor that is unknown inside a part that the model does have
    is a problem: the file is of another model then, perhaps a deeper one.

    Args:
        state: tensors by name, from the file.
        expected: the model's state dict.
        rename: translates the names of a publication into the model's.
    """
    cleaned = without_wrappers(state)
    prefix, added = _prefixes(cleaned, expected, rename)
    named = _renamed(cleaned, prefix, added, rename)
    notes = []
    if prefix:
        notes.append(f"removed the prefix {prefix!r} from the names")
    if added:
        notes.append(f"put the prefix {added!r} before the names")

    missing = [name for name in expected if name not in named]
    filled = {name: expected[name] for name in missing if name.rpartition(".")[2] == BATCHES}
    problems = [f"{name} is missing" for name in missing if name not in filled]
    parts = {name.partition(".")[0] for name in expected}
    ignored = [name for name in cleaned if not name.startswith(prefix)]
    for name in named:
        if name in expected:
            continue
        part, inside, _ = name.partition(".")
        if name.rpartition(".")[2] in BOOKKEEPING or (inside and part not in parts):
            ignored.append(name)
        else:
            problems.append(f"{name} is unknown to the model")
    if ignored:
        notes.append(f"ignored {_listed(ignored)}")
    if filled:
        notes.append(f"set the missing {BATCHES} of {len(filled)} batch norms to 0")
    resized = {
        name: (tuple(named[name].shape), tuple(value.shape))
        for name, value in expected.items()
        if name in named and named[name].shape != value.shape
    }
    problems += [
        f"{name} is {list(stored)}, the model has {list(built)}"
        for name, (stored, built) in resized.items()
    ]
    fitted = {name: named[name] for name in expected if name in named}
    note = "; ".join(notes) or None
    return Fit({**fitted, **filled}, tuple(problems), note, resized)


def without_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without what DataParallel, DDP and torch.compile put into them."""
    cleaned = {}
    for name, value in state.items():
        while name.startswith(WRAPPERS):
            name = name.partition(".")[2]
        cleaned[name.replace("._orig_mod.", ".")] = value
    return cleaned


def _prefixes(
    state: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    rename: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
) -> tuple[str, str]:
    """The prefix to remove from the file's names and the one to add, for the most matches."""
    counts: dict[str, int] = {"": len(state)}
    for name in state:
        parts = name.split(".")
        for depth in range(1, min(len(parts), 4)):
            prefix = ".".join(parts[:depth]) + "."
            counts[prefix] = counts.get(prefix, 0) + 1
    large = [prefix for prefix, count in counts.items() if 2 * count >= len(expected)]
    shared = _shared_prefix(expected)
    choices = [("", ""), *((p, "") for p in large if p), *((p, shared) for p in large if shared)]

    def matches(choice: tuple[str, str]) -> tuple[int, bool]:
        named = _renamed(state, *choice, rename)
        return sum(name in named for name in expected), not AVERAGED.search(choice[0])

    best = max(choices, key=matches)
    if 2 * matches(best)[0] >= len(expected):
        return best
    return _shared_prefix(state), ""  # another model: at least name its parts as the model would


def _shared_prefix(names: Mapping[str, Tensor]) -> str:
    """What all names begin with, up to a dot."""
    parts = {name.partition(".")[:2] for name in names}
    if len(parts) != 1:
        return ""
    (part, dot) = parts.pop()
    return f"{part}." if dot else ""


def _renamed(
    state: Mapping[str, Tensor],
    prefix: str,
    added: str,
    rename: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
) -> dict[str, Tensor]:
    inner = {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }
    renamed = rename(without_wrappers(inner))
    return {added + name: value for name, value in renamed.items()} if added else dict(renamed)


def _listed(names: list[str]) -> str:
    """Names of tensors, those of one part or counter together: `aux.* (4 tensors), n_averaged`."""
    groups: dict[str, int] = {}
    for name in names:
        last = name.rpartition(".")[2]
        part, dot, _ = name.partition(".")
        group = last if last in BOOKKEEPING else f"{part}.*" if dot else name
        groups[group] = groups.get(group, 0) + 1
    shown = [
        f"{group} ({count} tensors)" if count > 1 else group
        for group, count in list(groups.items())[:5]
    ]
    more = f" and {len(groups) - 5} more" if len(groups) > 5 else ""
    return ", ".join(shown) + more

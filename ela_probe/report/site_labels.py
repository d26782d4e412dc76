"""Short labels of sites and stages: the parts by which their qualified names differ."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ela_probe.errors import printable


def short_labels(names: Sequence[str], longest: int = 14) -> list[str]:
    """The parts by which qualified names differ.

    >>> short_labels(["stages.0.1.retrieval", "stages.0.2.retrieval"])
    ['1', '2']
    """
    parts = [_parts(printable(name)) for name in names]
    head, tail = _common(parts)
    labels = ["".join(p[head : len(p) - tail]).lstrip(".@") for p in parts]
    return [text if len(text) <= longest else "…" + text[1 - longest :] for text in labels]


def shared_name(names: Sequence[str], longest: int = 40) -> str:
    """The common parts of qualified names around a star, such as `stages.0.*.retrieval`."""
    parts = [_parts(printable(name)) for name in names]
    if len(parts) < 2:
        return short(names[0], longest)
    head, tail = _common(parts)
    start, first = "".join(parts[0][:head]), parts[0]
    end = "".join(first[len(first) - tail :])
    star = ".*" if start and first[head].startswith(".") else "*"
    return short(start + star + end, longest)


def short(name: str, longest: int = 32) -> str:
    """A name cut in its middle to at most `longest` characters."""
    name = printable(name)
    if len(name) <= longest:
        return name
    half = (longest - 1) // 2
    return name[:half] + "…" + name[-half:]


def _parts(name: str) -> list[str]:
    """`a.b@1` as ["a", ".b", "@1"]."""
    return re.findall(r"^[^.@]+|[.@][^.@]*", name) or [name]


def _common(parts: Sequence[Sequence[str]]) -> tuple[int, int]:
    """How many leading and trailing parts all names share; one part of each is always left."""
    spare = min(map(len, parts)) - 1
    head = 0
    while head < spare and len({p[head] for p in parts}) == 1:
        head += 1
    tail = 0
    while tail < spare - head and len({p[-1 - tail] for p in parts}) == 1:
        tail += 1
    return head, tail

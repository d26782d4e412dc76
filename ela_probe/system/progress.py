"""Progress on stderr, and only where a person watches: stdout belongs to results."""

from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")


def track(
    iterable: Iterable[Item],
    description: str,
    *,
    total: int | None = None,
    progress: bool = True,
) -> Iterator[Item]:
    """Yield the items of `iterable` under a progress bar on stderr.

    Args:
        iterable: what to go through; the bar vanishes at its end, also when the body raises.
        description: a few words, as in "evaluating".
        total: number of items; `len(iterable)` where it has one.
        progress: False shows nothing, as does a stderr that is not a terminal.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with bar(progress=progress) as shown:
        yield from shown.track(iterable, total=total, description=description)


def bar(*, progress: bool = True) -> Progress:
    """A transient rich progress bar on stderr; silent unless stderr is a terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (progress and console.is_terminal),
    )

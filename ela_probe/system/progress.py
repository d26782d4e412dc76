"""Progress bars on stderr, and only on a terminal: stdout is for results."""

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
        iterable: the items; the bar disappears at the end, also when the loop raises.
        description: a few words, as in "evaluating".
        total: number of items; None: `len(iterable)`, if it has a length.
        progress: False shows nothing. Nothing is shown either if stderr is no terminal.
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

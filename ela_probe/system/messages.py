"""Parts of messages: the text of errors that other code raised, and suggestions of names."""

import difflib
from collections.abc import Iterable
from pathlib import Path

LONGEST_NAME = 80  # characters that are compared: the time grows with their square


def first_line(error: BaseException, limit: int = 150) -> str:
    r"""The first line of an error's text that is not blank, at most `limit` characters of it.

    An error without text, such as `ValueError()`, is named by its class.

        >>> first_line(ValueError("one\ntwo"))
        'one'
        >>> first_line(ValueError())
        'ValueError'
    """
    return _first_line(error)[:limit] or type(error).__name__


def class_and_first_line(error: BaseException, limit: int = 150) -> str:
    r"""The same after the name of the error's class.

    >>> class_and_first_line(ValueError("one\ntwo"))
    'ValueError: one'
    >>> class_and_first_line(ValueError())
    'ValueError'
    """
    line = _first_line(error)[:limit]
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def _first_line(error: BaseException) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), "")


def shortened(text: str, longest: int = 120) -> str:
    """A text cut in its middle to at most `longest` characters, to be quoted.

    >>> shortened("abcdefghij", 5)
    'ab…ij'
    """
    half = (longest - 1) // 2
    return text if len(text) <= longest else f"{text[:half]}…{text[-half:]}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'NAME'?)` with the most similar known name; empty if none is similar.

    >>> did_you_mean("skipp", ["skip", "warmup"])
    " (did you mean 'skip'?)"
    >>> did_you_mean("lr", ["skip", "warmup"])
    ''
    """
    similar = difflib.get_close_matches(name[:LONGEST_NAME], list(known), n=1, cutoff=0.6)
    return f" (did you mean {similar[0]!r}?)" if similar else ""


def quoted(path: str | Path) -> str:
    """A path as a shell takes it, in double quotes if it has a blank.

    >>> quoted("my run/best.pt"), quoted("run[v2]/best.pt")
    ('"my run/best.pt"', 'run[v2]/best.pt')
    """
    return f'"{path}"' if any(c.isspace() for c in str(path)) else str(path)

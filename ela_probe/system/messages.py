"""The text of errors that other code raised, for use inside a message of ours."""


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

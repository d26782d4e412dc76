"""The errors that a user can meet. Messages say what was given, what was expected, what to do."""


def printable(text: str) -> str:
    r"""The text with a replacement for every line break, control character and lone surrogate.

    Names of a file reach a terminal, a page and a figure; an escape sequence in them must not.

    >>> printable("a\nb")
    'a\ufffdb'
    """
    return text if text.isprintable() else "".join(map(_printable, text))


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    if 0xDC80 <= ord(character) <= 0xDCFF:  # a byte of a file name that is no UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return "\ufffd"


class ElaProbeError(Exception):
    """Root of all errors raised on purpose. The CLI prints them in one line, with exit code 2.

    The message can be printed: names of files are part of it, and some hold escape sequences.
    """

    def __str__(self) -> str:
        return "\n".join(map(printable, super().__str__().split("\n")))


class OptionError(ElaProbeError):
    """An argument or an option has a value that can't be used."""


class ModelError(ElaProbeError):
    """A model can't be built, or has no layer attention that can be read."""


class CheckpointError(ElaProbeError):
    """A checkpoint can't be read, is refused, or doesn't fit its model."""


class DataError(ElaProbeError):
    """A data source is missing, empty, or doesn't fit the model."""


class DataWarning(UserWarning):
    """Data was opened, but something about it is probably a mistake."""


class ProbeError(ElaProbeError):
    """The sites did not behave as discovery found them, or their weights are no weights."""


class AnalysisError(ElaProbeError):
    """An analysis has too little data for the question, or its folder can't be read."""


class PlanError(ElaProbeError):
    """A skip plan is invalid, infeasible, or was made for other sites."""


class ProcessError(ElaProbeError):
    """One of several processes ended early, and the others can't continue."""


class OutputError(ElaProbeError):
    """A result can't be written. No half-written file is left."""

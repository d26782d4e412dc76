"""The entry point of the command: errors become one line and an exit code, warnings one line."""

import errno
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

from ela_probe.errors import ElaProbeError

from .failures import Interrupted, explained, terminated_like_interrupted

INTERRUPTED = 130
LONGEST_ERROR = 2000  # characters: a file may hold a name of any length


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0, 2 for a user's error, 130 for Ctrl-C and 143 for SIGTERM.
    """
    with terminated_like_interrupted() as received:
        code = _main(arguments)
    return 128 + received[0] if received and code == INTERRUPTED else code


def _main(arguments: Sequence[str] | None) -> int:
    from .encoding import tolerate_missing_characters
    from .inputs import look_for_files

    tolerate_missing_characters()
    # Read when transformers is imported: no network, no warnings about kernels that are missing.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        look_for_files(words)
        from .app import app

        with redirect_stdout(sys.stdout), _warnings_in_one_line():  # an output may take stdout
            code = int(app(words, prog_name="ela-probe", standalone_mode=False) or 0)
            sys.stdout.flush()
        return fail("interrupted", code=code) if code == INTERRUPTED else code
    except ElaProbeError as error:
        if debug:
            raise
        return fail(str(error))
    except (KeyboardInterrupt, Interrupted) as error:
        return fail(str(error) or "interrupted", code=INTERRUPTED)
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        _close_stdout()
        return 0
    except OSError as error:
        if debug or error.errno != errno.ENOSPC:
            raise
        _close_stdout()
        return fail(f"cannot write the output: {error.strerror}; free some space")
    except Exception as error:
        failure = explained(error)
        if failure is not None and not debug:
            return fail(failure)
        message = getattr(error, "format_message", None)
        if debug or message is None:  # no usage error of Typer
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            print(message())
            return 2
        context = getattr(error, "ctx", None)
        verb = context.command_path if context is not None else "ela-probe"
        return fail(f"{message()} See `{verb} --help`")


def _close_stdout() -> None:
    """Send what is left to nowhere, so that Python does not fail to write it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fail(message: str, *, code: int = 2) -> int:
    """Print an error in one line on stderr."""
    from ela_probe.errors import printable
    from ela_probe.system.messages import shortened

    lines = (line.strip() for line in message.splitlines())
    text = shortened(" ".join(line for line in lines if line), LONGEST_ERROR)
    print(f"error: {printable(text)}", file=sys.stderr)
    return code


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Print this package's own warnings as `warning: TEXT`, without file and line of code."""
    from .console import is_first_process, print_note

    with warnings.catch_warnings():
        show_others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
            if not category.__module__.startswith("ela_probe."):
                show_others(message, category, *place)
            elif is_first_process():
                print_note(f"warning: {' '.join(str(message).split())}")

        warnings.showwarning = show  # type: ignore[assignment]
        yield


def run() -> None:
    """The entry point of the installed command."""
    code = main()
    distributed = sys.modules.get("torch.distributed")
    if code and distributed is not None and distributed.is_initialized():
        # The threads of an unfinished process group can abort Python while it shuts down.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)

"""Groups of options: a command takes a dataclass, and Typer sees its fields as options."""

import inspect
import re
import textwrap
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints

from .failures import interrupt_as_error


def expand_groups(command: Callable[..., None]) -> Callable[..., None]:
    """The command with each parameter that is a dataclass replaced by the dataclass's fields.

    Ctrl-C in it raises Interrupted.

    Typer has no groups of its own. A field is written as a parameter would be:

        @dataclass(frozen=True)
        class DataOptions:
            data: Annotated[str | None, typer.Option(help="...")] = None

        def command(*, options: DataOptions) -> None: ...
    """
    parameters: dict[str, inspect.Parameter] = {}
    groups: dict[str, type] = {}
    # Not get_type_hints: before Python 3.11 it wraps what has the default None in Optional, which
    # hides an option's names.
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        kind = parameter.annotation
        if not is_dataclass(kind):
            parameters[name] = _option(name, kind, parameter.default)
            continue
        groups[name] = kind  # type: ignore[assignment]
        field_hints = get_type_hints(kind, include_extras=True)
        for field in fields(kind):
            default = inspect.Parameter.empty if field.default is MISSING else field.default
            parameters[field.name] = _option(field.name, field_hints[field.name], default)

    def expanded(**values: Any) -> None:
        for name, kind in groups.items():
            values[name] = kind(**{field.name: values.pop(field.name) for field in fields(kind)})
        with interrupt_as_error():
            command(**values)

    expanded.__doc__ = fence_examples(command.__doc__ or "")
    expanded.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    expanded.__annotations__ = {name: option.annotation for name, option in parameters.items()}
    return expanded


def fence_examples(text: str) -> str:
    """A docstring whose indented examples stand in Markdown's fences.

    Typer dedents what follows a paragraph of one line, and the examples would run together.
    """
    return re.sub(
        r"(?m)^    .+(\n    .+)*$",
        lambda found: f"```text\n{textwrap.dedent(found[0])}\n```",
        inspect.cleandoc(text),
    )


def _option(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )

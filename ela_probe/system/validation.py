"""Documents and settings: strict fields, errors in one line, differences in words."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Finite = Annotated[float, Field(allow_inf_nan=False)]


class Strict(BaseModel):
    """A document or settings object: frozen, and a field it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


def explain(error: ValidationError, limit: int = 3) -> str:
    """A pydantic error in one line: where, what came, what was expected."""
    problems = []
    for problem in error.errors()[:limit]:
        where = ".".join(str(part) for part in problem["loc"]) or "the document"
        message = problem["msg"].removeprefix("Value error, ")
        value = problem.get("input")
        came = f" (got {value!r})" if isinstance(value, str | int | float | None) else ""
        if problem["loc"] == ("schema_version",):
            message = "expected version 1; this ela-probe is too old or too new"
        problems.append(f"{where}: {message}{came}")
    hidden = error.error_count() - limit
    return "; ".join(problems) + (f"; and {hidden} more" if hidden > 0 else "")


def differing_settings(
    then: Mapping[str, Any], now: Mapping[str, Any], *, prefix: str = ""
) -> list[str]:
    """The settings with other values, each as `prefix + name VALUE then, VALUE now`.

    A setting that one side lacks counts as None there; a tuple equals a list of the same values.
    """
    return [
        f"{prefix}{name} {then.get(name)!r} then, {now.get(name)!r} now"
        for name in {**then, **now}
        if _lists(then.get(name)) != _lists(now.get(name))
    ]


def _lists(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_lists(item) for item in value]
    if isinstance(value, dict):
        return {name: _lists(item) for name, item in value.items()}
    return value

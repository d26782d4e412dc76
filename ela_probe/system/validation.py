"""What every document that is read from a file shares: strict fields, errors in one line."""

from typing import Annotated

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

"""Documents and settings: strict fields, errors in one line, differences in words."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, TypeVar, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ela_probe.errors import OptionError, printable
from ela_probe.system.messages import did_you_mean, shortened

LONGEST_NAME = 300  # characters
Finite = Annotated[float, Field(allow_inf_nan=False)]


def check_name(name: str) -> str:
    """The name of a site, a stage or a model in a file: it reaches terminals, pages and figures.

    Raises:
        ValueError: it is longer than LONGEST_NAME, or can't be printed.
    """
    if len(name) > LONGEST_NAME:
        raise ValueError(f"the name {shortened(name)!r} is longer than {LONGEST_NAME} characters")
    if not name.isprintable():
        raise ValueError(f"the name {printable(shortened(name))!r} can't be printed")
    return name


Name = Annotated[str, AfterValidator(check_name)]
LONGEST_VALUE = 80  # characters of a value that are shown
LONGEST_MESSAGE = 400  # characters that pydantic or a check of ours says of one field
MOST_PROBLEMS = 20
MOST_COLLECTED = 10_000  # pydantic makes a dict of each
VERSIONS = (("schema_version",), ("format_version",))  # fields of documents and checkpoints
AnySettings = TypeVar("AnySettings", bound="Settings")


class Strict(BaseModel):
    """A document or settings object: frozen, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Settings(Strict):
    """Settings that a user gives by name."""

    TITLE: ClassVar[str] = "settings"

    @classmethod
    def of(cls: type[AnySettings], **settings: Any) -> AnySettings:
        """The settings, checked.

        Raises:
            OptionError: a setting is unknown or out of bounds; one line lists all such settings.
        """
        try:
            return cls(**settings)
        except ValidationError as error:
            raise OptionError(f"{cls.TITLE}: {explain(error, cls, limit=None)}") from None


def explain(
    error: ValidationError, model: type[BaseModel] | None = None, *, limit: int | None = 3
) -> str:
    """A pydantic error in one line: each field, the value that it got and what was expected.

    Args:
        error: from validating a document or settings.
        model: their class, so that an unknown field is reported with the known ones.
        limit: describe at most this many problems, and count the others. None: MOST_PROBLEMS.
    """
    if error.error_count() > MOST_COLLECTED:
        return f"{error.error_count():,} of its values are wrong"
    problems = error.errors()
    # Of another version, the other fields differ too.
    problems = [problem for problem in problems if problem["loc"] in VERSIONS] or problems
    described = [_describe(problem, model) for problem in problems[: limit or MOST_PROBLEMS]]
    hidden = len(problems) - len(described)
    return "; ".join(described) + (f"; and {hidden} more" if hidden else "")


def _describe(problem: Any, model: type[BaseModel] | None) -> str:
    location = problem["loc"]
    field = ".".join(str(part) for part in location)
    value = "" if isinstance(problem["input"], dict) else repr(problem["input"])
    if location in VERSIONS:
        return (
            f"{field}: got {shortened(value)}, expected 1; if a newer ela-probe wrote it, upgrade "
            "this one: pip install --upgrade ela-probe"
        )
    if problem["type"] == "extra_forbidden" and model is not None:
        known = _known_fields(model, location[:-1])
        hint = did_you_mean(str(location[-1]), known)
        return f"there is no {shortened(field)!r}{hint}; expected {', '.join(known)}"
    message: str = problem["msg"].removeprefix("Value error, ")
    if not location:
        return shortened(message, LONGEST_MESSAGE)
    shown = f" {value}" if value and len(value) <= LONGEST_VALUE else ""
    return f"{shortened(field)}{shown}: {shortened(message, LONGEST_MESSAGE)}"


def _known_fields(model: type[BaseModel], location: Iterable[str | int]) -> list[str]:
    """The fields of the part of a document that a location leads to."""
    for name in location:
        field = model.model_fields.get(str(name))
        if field is not None:
            model = next(_models_in(field.annotation), model)
    return list(model.model_fields)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    # On Python 3.10 a `list[int]` is an instance of `type` too.
    plain = isinstance(annotation, type) and get_origin(annotation) is None
    if plain and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def differing_settings(
    then: Mapping[str, Any], now: Mapping[str, Any], *, prefix: str = ""
) -> list[str]:
    """The settings with other values, each as `prefix + name VALUE then, VALUE now`.

    A setting that one side lacks counts as None there; a tuple equals a list of the same values.
    Floats have six digits, or all where six are the same; long values are cut. What is no plain
    value, as in a damaged file, differs from every plain one.
    """
    differing = []
    then = then if isinstance(then, Mapping) else {}  # what a damaged file has there
    for name in {**then, **now}:
        old, new = _plain(then.get(name)), _plain(now.get(name))
        if old != new:
            shown = _rounded(old), _rounded(new)
            old, new = (old, new) if shown[0] == shown[1] else shown
            words = f"{_shown(old)} then, {_shown(new)} now"
            differing.append(f"{prefix}{printable(shortened(str(name)))} {words}")
    return differing


def _shown(value: Any) -> str:
    return shortened(printable(repr(value)))


def _rounded(value: Any) -> Any:
    """Nested lists and dicts with floats of six digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    return value


def _plain(value: Any) -> Any:
    """Nested values with tuples as lists; a tensor, whose comparison is no answer, as its class."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return value if isinstance(value, str | int | float | None) else type(value)

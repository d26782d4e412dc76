"""JsonDocument: what is kept as a JSON file of its own and validated on reading."""

from pathlib import Path
from typing import ClassVar, TypeVar

from ela_probe.errors import ElaProbeError
from ela_probe.system.reading import read_document, refusing
from ela_probe.system.storage import write_text
from ela_probe.system.validation import Strict

AnyDocument = TypeVar("AnyDocument", bound="JsonDocument")


class JsonDocument(Strict):
    """A validated document; a class of documents says how messages speak of it.

    NAMED: such as "the plan". EXPECTED: such as "a file that `ela-probe plan` wrote". INVALID: what
    is said of a file that is none, such as "is no valid skip plan". ERROR: the error to raise.
    """

    NAMED: ClassVar[str]
    EXPECTED: ClassVar[str]
    INVALID: ClassVar[str]
    ERROR: ClassVar[type[ElaProbeError]]

    def save(self, path: str | Path) -> Path:
        """Write it as JSON. Raises OutputError."""
        return write_text(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls: type[AnyDocument], path: str | Path) -> AnyDocument:
        """Read and validate a file.

        Raises:
            ElaProbeError: of class `ERROR`: no such file, not JSON, an unknown version or field, or
                a rule is broken.
        """
        text = read_document(path, what=cls.NAMED, expected=cls.EXPECTED, error=cls.ERROR)
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls: type[AnyDocument], text: str, name: str | None = None) -> AnyDocument:
        """Validate JSON text; `name` is for messages. Raises `ERROR`, as `load`."""
        invalid, expected = f"{name or cls.NAMED} {cls.INVALID}", f"expected {cls.EXPECTED}"
        with refusing(cls.ERROR, invalid, expected, model=cls):
            return cls.model_validate_json(text)

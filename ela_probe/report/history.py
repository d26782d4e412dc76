"""The history of a training run: the rows of the `metrics.csv` that `train` writes."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path

from ela_probe.errors import OptionError
from ela_probe.system.documents import read_document

COLUMN = "epoch"


@dataclass(frozen=True)
class History:
    """One row for each epoch: loss, accuracy, the share skipped. A missing figure is None."""

    rows: list[dict[str, float | None]]

    @property
    def skips(self) -> bool:
        """Whether retrievals were skipped while the network trained (ELA)."""
        return any(row.get("skipped") is not None for row in self.rows)

    @classmethod
    def load(cls, path: str | Path) -> History:
        """Read a `metrics.csv`. Raises OptionError: no such file, or no history in it."""
        expected = "the metrics.csv of a run that `ela-probe train` made"
        text = read_document(path, what="the history", expected=expected, error=OptionError)
        reader = csv.DictReader(io.StringIO(text))
        if COLUMN not in (reader.fieldnames or ()):
            raise OptionError(f"{path} has no column {COLUMN!r}; expected {expected}")
        try:
            rows = [{str(k): _number(v) for k, v in row.items()} for row in reader]
        except (TypeError, ValueError) as error:
            raise OptionError(
                f"{path} holds no history ({error}); expected {expected}, numbers in every row"
            ) from error
        return cls(rows)


def _number(text: str | None) -> float | None:
    """A cell; None where it is empty, or no finite number."""
    if text is None:
        raise TypeError("a row is too short")
    if not text.strip():
        return None
    value = float(text)
    return value if math.isfinite(value) else None

"""The history of a training run, from the files that `train` writes.

`metrics.csv` has a row for each epoch. With ELA, `ela.csv` beside it has a row for each site and
epoch.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ela_probe.errors import OptionError
from ela_probe.system.reading import read_document, refusing

Row = dict[str, float | str | None]
TEXT = ("stage", "site", "action")
SITE_FILE = "ela.csv"


@dataclass(frozen=True)
class History:
    """A training run over its epochs. A missing figure is None.

    rows: one for each epoch: loss, accuracy, the share skipped. sites: one for each epoch and site
    of a run with ELA: its action, divergences and damage.
    """

    rows: list[Row]
    sites: list[Row] = field(default_factory=list)

    @property
    def skips(self) -> bool:
        """Whether retrievals were skipped while the network trained (ELA)."""
        return any(row.get("skipped") is not None for row in self.rows)

    @property
    def measured(self) -> list[str]:
        """Which figures of sites are known in some epoch: kl, damage."""
        names = ("kl", "damage")
        return [name for name in names if any(row.get(name) is not None for row in self.sites)]

    @classmethod
    def load(cls, path: str | Path) -> History:
        """Read a `metrics.csv`, and the `ela.csv` beside it if there is one.

        Raises:
            OptionError: no such file, or no history in it.
        """
        beside = Path(path).with_name(SITE_FILE)
        sites = _rows(beside, ("epoch", "site", "action", "kl")) if beside.is_file() else []
        return cls(_rows(Path(path), ("epoch",)), sites)


def _rows(path: Path, needed: Sequence[str]) -> list[Row]:
    """The rows of a file that has these columns."""
    expected = f"the {path.name} of a run that `ela-probe train` made"
    text = read_document(path, what="the history", expected=expected, error=OptionError)
    with refusing(
        OptionError, f"{path} holds no history", f"expected {expected}, numbers in every row"
    ):
        reader = csv.DictReader(io.StringIO(text))
        if missing := [name for name in needed if name not in (reader.fieldnames or ())]:
            raise OptionError(f"{path} has no column {missing[0]!r}; expected {expected}")
        return [{str(k): v if k in TEXT else _number(v) for k, v in row.items()} for row in reader]


def _number(text: str | None) -> float | None:
    """A cell; None where it is empty, or no finite number."""
    if text is None:
        raise TypeError("a row is too short")
    if not text.strip():
        return None
    value = float(text)
    return value if math.isfinite(value) else None

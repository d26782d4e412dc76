"""The record of a finished run, which is used again only for a run with the same settings."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ela_probe.errors import OptionError

RESULT = "result.json"


def read_record(
    folder: Path,
    settings: Mapping[str, Any],
    *,
    defaults: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any] | None:
    """The record in a folder; None if there is none yet.

    Args:
        settings: plain values by part, as under "settings" in the record.
        defaults: by part, values of the fields that an older record lacks.

    Raises:
        OptionError: it is the record of a run with other settings.
    """
    path = folder / RESULT
    if not path.is_file():
        return None
    record: dict[str, Any] = json.loads(path.read_text())
    then = dict(record["settings"])
    for part, fields in (defaults or {}).items():
        if then.get(part) is not None:
            then[part] = {**fields, **then[part]}
    differing = [
        f"{part} {then.get(part)} then, {value} now"
        for part, value in json.loads(json.dumps(settings)).items()
        if then.get(part) != value
    ]
    if differing:
        raise OptionError(
            f"{folder} holds a run with other settings ({'; '.join(differing)}): choose "
            "another --output"
        )
    return record

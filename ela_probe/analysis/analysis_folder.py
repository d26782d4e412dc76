"""The folder of an analysis: its files belong together, or they are refused.

`analysis.json` is written last and holds the SHA-256 of every other file. After an interruption
between two of them it names files that are no longer there.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ela_probe.errors import AnalysisError
from ela_probe.system.array_files import read_arrays
from ela_probe.system.reading import read_bytes, read_document
from ela_probe.system.storage import output_directory, write_bytes, write_json

DOCUMENT, ARRAYS, TABLES = "analysis.json", "arrays.npz", ("pairs.csv", "sites.csv")
DIGESTS = "sha256"
EXPECTED = "a folder that `ela-probe analyze` wrote"


def write_folder(
    directory: str | Path,
    *,
    document: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]],
    tables: Mapping[str, str],
) -> Path:
    """Write the arrays, the tables (text by file name), and last the document with all digests.

    Raises:
        OutputError: the folder can't be written to.
    """
    directory = output_directory(directory)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    parts = {ARRAYS: buffer.getvalue(), **{name: text.encode() for name, text in tables.items()}}
    for name, content in parts.items():
        write_bytes(directory / name, content)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()}
    write_json(directory / DOCUMENT, {**document, DIGESTS: digests})
    return directory


def read_folder(
    directory: Path, *, version: int, wanted: Callable[[str], bool]
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The document, and the arrays whose names are wanted.

    A folder without digests, of an earlier version, is read as it is. A table may be missing: only
    people read it.

    Raises:
        AnalysisError: no analysis is there, it has another version, or its files don't belong
            together.
        Exception: of any kind where a file is damaged.
    """
    if directory.is_file():
        raise AnalysisError(f"{directory} is a file; expected {EXPECTED}")
    for name in (DOCUMENT, ARRAYS):
        if not (directory / name).exists():
            raise AnalysisError(
                f"there is no analysis in {directory}: {name} is missing; expected {EXPECTED}"
            )
    text = read_document(
        directory / DOCUMENT,
        what="the analysis",
        expected="JSON that `ela-probe analyze` wrote",
        error=AnalysisError,
    )
    document: dict[str, Any] = json.loads(text)
    found = document["schema_version"]
    if found != version:
        raise AnalysisError(
            f"{directory} has version {found!r} of the analysis format; expected {version}; if a "
            "newer ela-probe wrote it, upgrade this one (pip install --upgrade ela-probe), or run "
            "`ela-probe analyze` again"
        )
    digests = document.get(DIGESTS)
    content = _part(directory, ARRAYS, digests)
    for name in TABLES:
        if digests is not None and (directory / name).exists():
            _part(directory, name, digests)
    return document, read_arrays(io.BytesIO(content), wanted)


def _part(directory: Path, name: str, digests: Mapping[str, str] | None) -> bytes:
    """A file's content. Raises AnalysisError where its digest is not the document's.

    digests: of all files, by name; None where the document has none.
    """
    content = read_bytes(
        directory / name, what="the analysis", expected=EXPECTED, error=AnalysisError
    )
    if digests is not None and hashlib.sha256(content).hexdigest() != digests.get(name):
        raise AnalysisError(
            f"the analysis in {directory} is not whole: {name} is not the file that {DOCUMENT} was "
            "written with (the analysis was interrupted, or the file was changed); run "
            "`ela-probe analyze` again"
        )
    return content

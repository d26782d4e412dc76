"""Readers that break the rules of `fuzz`, each on its mutated inputs only."""

import os
from pathlib import Path

from ela_probe.errors import CheckpointError
from tests.trust.fuzz_inputs import Reader
from tests.trust.fuzz_mutations import some_bytes

VALID = {"a": b"valid"}


def _is_valid(folder: Path) -> bool:
    return (folder / "a").read_bytes() == b"valid"


def _busy(folder: Path) -> None:
    while not _is_valid(folder):
        pass


def _dead(folder: Path) -> None:
    if not _is_valid(folder):
        os.abort()


def _large(folder: Path) -> None:
    if not _is_valid(folder):
        try:
            bytearray(2**32)
        except MemoryError as error:
            raise CheckpointError("damaged") from error


READERS = {
    name: Reader(lambda: VALID, read, {"": some_bytes})
    for name, read in (
        ("busy", _busy), ("dead", _dead), ("large", _large), ("good", lambda folder: None)
    )
}  # fmt: skip

"""Reading arrays from NumPy's `.npz` files: the named ones only, and no more than is declared."""

import math
import zipfile
from collections.abc import Callable
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ela_probe.system.numbers import counted

SUFFIX = ".npy"
LARGE_BYTES = 2**31  # so much is read only of a file that is not much smaller
MOST_EXPANSION = 100  # how many times larger than its compressed form a large array may be


def array_names(file: IO[bytes]) -> list[str]:
    """The names of the arrays in a file. Raises zipfile.BadZipFile."""
    with zipfile.ZipFile(file) as archive:
        return [name.removesuffix(SUFFIX) for name in archive.namelist()]


def read_arrays(file: IO[bytes], wanted: Callable[[str], bool]) -> dict[str, NDArray[Any]]:
    """The arrays of those names that `wanted` is true of; other members are not read.

    Nothing is allocated before the shape that a member's header declares agrees with its size.

    Raises:
        ValueError: a member is no plain array, or its size is not what its header declares, or it
            is a large one of next to nothing (a zip bomb).
        Exception: of any kind, from zipfile, zlib and NumPy, on foreign bytes.
    """
    found = {}
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(SUFFIX)
            if wanted(name):
                found[name] = _read(archive, member)
    return found


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    size = member.file_size
    if size > LARGE_BYTES and size > MOST_EXPANSION * member.compress_size:
        raise ValueError(
            f"{member.filename} holds {counted(size, 'byte')} in {member.compress_size:,}, which "
            f"is more than {MOST_EXPANSION} times as much"
        )
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read_header = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read_header(stream)
        if dtype.hasobject:
            raise ValueError(f"{member.filename} holds Python objects")
        declared = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or declared != size - stream.tell():
            raise ValueError(
                f"{member.filename} declares the shape {shape} of {dtype}, "
                f"{counted(declared, 'byte')}, but holds {size - stream.tell():,}"
            )
    with archive.open(member) as stream:
        array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
    return array

"""Keeping freed memory for the next tensors, where the C library would give it back."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# of glibc's malloc.h, with what its own adjustment ends at
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
USUAL = {TRIM_THRESHOLD: 64 * 2**20, MMAP_THRESHOLD: 32 * 2**20}
KEEPING = {TRIM_THRESHOLD: 2**31 - 1, MMAP_THRESHOLD: 2**30}  # bytes


@contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """Within, what tensors on the CPU free stays with the process; afterwards it is given back.

    A training step frees its activations, and the next one asks for as much. In between glibc
    returns what is larger than 32 MiB to the system, as the sources of a stage of MRLA-B soon are,
    and the system fills every page with zeros again. The numbers computed are the same. Does
    nothing under another C library.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not (hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):
        yield
        return
    assert libc is not None
    for option, value in KEEPING.items():
        libc.mallopt(option, value)
    try:
        yield
    finally:
        for option, value in USUAL.items():
            libc.mallopt(option, value)
        libc.malloc_trim(0)

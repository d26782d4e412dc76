"""The memory of a process between batches, and runs in processes of their own."""

import gc
import multiprocessing
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def in_new_process(work: Callable[..., dict[str, Any]], **options: Any) -> dict[str, Any]:
    """What a function of a module returns when a new process calls it."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, kwds=options)


def live_tensor_bytes() -> int:
    """Bytes of all tensor storages that Python can still reach, each counted once."""
    gc.collect()
    storages = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
        for value in gc.get_objects()
        if type(value) in (Tensor, nn.Parameter) and value.layout == torch.strided
    }
    return sum(storages.values())


def resident_bytes() -> int:
    """The resident set of this process now; its maximum on systems without /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return pages * resource.getpagesize()

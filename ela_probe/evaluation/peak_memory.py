"""Peak memory of a piece of work, in bytes beyond what was allocated before it.

On CUDA it is the caching allocator's own count. Elsewhere the tensors that operations return are
followed from birth to death; what a kernel allocates and frees within itself is not seen.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(work: Callable[[], object], device: torch.device | None = None) -> int:
    """Run `work` once and return the bytes it took at its peak, beyond what was there before.

    Args:
        work: takes nothing; what it returns is dropped.
        device: where it computes; the CPU when None.
    """
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before: int = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        peak: int = torch.cuda.max_memory_allocated(device)
        return peak - before
    with TensorMemory() as memory:
        work()
    return memory.peak


class TensorMemory(TorchDispatchMode):
    """Counts the bytes of tensor storages that are born inside the `with` block and still live.

    A storage that an operation only receives was there before and counts nothing, also when a
    view of it is returned. Covers backward passes.

    Attributes:
        live: bytes now. peak: the most there were at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):
                self._follow(value, born=False)
        result = func(*args, **kwargs)
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._follow(value, born=True)
        return result

    def _follow(self, tensor: Tensor, *, born: bool) -> None:
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if not address or address in self._known:
            return
        counted = size if born else 0

        def gone(_: object) -> None:
            self.live -= counted
            self._known.pop(address, None)

        self._known[address] = weakref.ref(storage, gone)
        self.live += counted
        self.peak = max(self.peak, self.live)

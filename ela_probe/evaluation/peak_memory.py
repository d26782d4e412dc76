"""Peak memory of a piece of work, in bytes on top of what was allocated before it.

On CUDA the caching allocator counts it. Elsewhere the tensors that operations return are followed
until they are freed; memory that a kernel allocates and frees by itself is not seen.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(work: Callable[[], object], device: torch.device | None = None) -> int:
    """Run `work` once; return the bytes that it allocated at its peak, on top of those before.

    Args:
        work: called without arguments; its result is discarded.
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
    """Counts the bytes of the tensor storages that were created inside the `with` block.

    A storage that an operation only receives existed before and is not counted, even if a view of
    it is returned. Backward passes are covered.

    Attributes:
        live: bytes that are allocated now. peak: the most that were allocated at once.
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
                self._follow(value, created=False)
        result = func(*args, **kwargs)
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._follow(value, created=True)
        return result

    def _follow(self, tensor: Tensor, *, created: bool) -> None:
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if not address or address in self._known:
            return
        counted = size if created else 0

        def freed(_: object) -> None:
            self.live -= counted
            self._known.pop(address, None)

        self._known[address] = weakref.ref(storage, freed)
        self.live += counted
        self.peak = max(self.peak, self.live)

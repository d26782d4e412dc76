"""The comparison of two ways to compute the same numbers."""

from collections.abc import Sequence

import torch
from torch import Tensor

# One float64 operation is off by 1e-16 of its result. Sums in another order and the deepest network
# of these tests make 1e-13 of that at most. This leaves room for a factor of 1000, and is far below
# the 1e-3 by which a missing term changes a result.
ROUNDING = 1e-10


def assert_same(result: Tensor | Sequence[Tensor], expected: Tensor | Sequence[Tensor]) -> None:
    """Both are float64 and equal up to rounding.

    In float32 rounding comes within reach of what such a test should notice, so it is refused.
    """
    results = [result] if isinstance(result, Tensor) else list(result)
    references = [expected] if isinstance(expected, Tensor) else list(expected)
    assert results
    for one, other in zip(results, references, strict=True):
        assert one.dtype == other.dtype == torch.float64
        torch.testing.assert_close(one, other, rtol=ROUNDING, atol=ROUNDING)

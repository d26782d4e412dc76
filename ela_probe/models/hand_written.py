"""Where the hand-written autograd functions may run, and what replaces them elsewhere.

They are faster than plain operations, but opaque: nothing that traces or transforms operations
sees into them. So under torch.compile, torch.export, torch.jit.trace, torch.fx, torch.func and in
forward mode the networks compute with plain operations. A backward pass whose own graph is asked
for (`create_graph=True`), or that runs under torch.func, is made of plain operations too.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx import Proxy


def by_hand(x: Tensor) -> bool:
    """Whether a hand-written function may be called on x here."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch.jit.is_tracing()  # type: ignore[attr-defined]
        or forward_ad._current_level >= 0
        or isinstance(x, Proxy)
    )


def plain_backward() -> bool:
    """Whether the backward pass that runs now must consist of plain operations."""
    return torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()


def gradients_of(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor
) -> list[Tensor | None]:
    """The gradients of a plain function with respect to its inputs, themselves differentiable.

    Args:
        function: takes the inputs, returns a tensor of the shape of `grad`.
        inputs: what a hand-written function saved of its own inputs.
        grad: the gradient of its result.

    Returns: one for each input, None where it needs none.
    """
    with torch.enable_grad():
        # views, so that an input that another one depends on gets its own share only
        views = [x.view_as(x) for x in inputs]
        wanted = [view for view in views if view.requires_grad]
        found: Any = torch.autograd.grad(function(*views), wanted, grad, create_graph=True)
    gradients = iter(found)
    return [next(gradients) if view.requires_grad else None for view in views]

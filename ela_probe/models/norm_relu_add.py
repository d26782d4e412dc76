"""x + relu(norm(o)): how MRLA-B adds a retrieval to the output of a block."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ela_probe.models.hand_written import by_hand, gradients_of, plain_backward


def norm_relu_add(norm: nn.Module, retrieved: Tensor, x: Tensor) -> Tensor:
    """x + relu(norm(retrieved)).

    In training with a plain BatchNorm2d, where hand-written functions may run, no intermediate
    result is kept: the backward pass recomputes where the ReLU was positive, and `norm` itself is
    not called. It is called in all other cases, also where it has hooks.

    Args:
        norm: a normalisation. retrieved, x: [batch, channels, height, width].
    """
    if (
        not by_hand(x)
        or not x.numel()
        or type(norm) is not nn.BatchNorm2d
        or not (norm.training and norm.affine and torch.is_grad_enabled())
        or norm.momentum is None
        or norm._forward_hooks
        or norm._forward_pre_hooks
    ):
        return x + F.relu(norm(retrieved), inplace=False)
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    result: Tensor = _NormReluAdd.apply(
        retrieved,
        x,
        norm.weight,
        norm.bias,
        norm.running_mean,
        norm.running_var,
        norm.momentum,
        norm.eps,
    )
    return result


class _NormReluAdd(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        retrieved: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        normed, mean, invstd = torch.native_batch_norm(
            retrieved, weight, bias, running_mean, running_var, True, momentum, eps
        )
        ctx.save_for_backward(retrieved, weight, bias, mean, invstd)
        ctx.eps = eps
        return normed.relu_().add_(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        retrieved, weight, bias, mean, invstd = ctx.saved_tensors
        if plain_backward():

            def plain(retrieved: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
                normed = F.batch_norm(retrieved, None, None, weight, bias, True, 0.0, ctx.eps)
                return normed.relu()

            first, *others = gradients_of(plain, (retrieved, weight, bias), grad)
            return first, grad, *others, None, None, None, None
        normed = F.batch_norm(
            retrieved, mean, invstd.pow(-2) - ctx.eps, weight, bias, training=False, eps=ctx.eps
        )
        through = torch.ops.aten.threshold_backward.grad_input(grad, normed, 0.0, grad_input=normed)
        by_retrieved, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            through, retrieved, weight, None, None, mean, invstd, True, ctx.eps, [True] * 3
        )
        return by_retrieved, grad, by_weight, by_bias, None, None, None, None

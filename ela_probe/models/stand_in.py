"""What replaces a retrieval under the action `affine`: a scale and a shift per channel."""

from typing import Any

import torch
from torch import Tensor, nn

from ela_probe.system.nested_tensors import with_first_tensor

MAPS = -3  # the axis of channels in [samples, channels, height, width]


class StandIn(nn.Module):
    """Σ_k (1 + a_k) ⊙ x_k + b, by channel. With a = b = 0 it hands on the sum of what it gets.

    A scale is stored as its difference from 1, so that weight decay draws it to the plain sum.

    Args:
        coefficients: [terms, channels], the a_k; with one more row at the end, b.
        terms: the number of tensors that it gets.
        channel_axis: the axis of these tensors that runs over channels, from the end: −3 of feature
            maps, −1 of tokens.
    """

    def __init__(self, coefficients: Tensor, *, terms: int = 1, channel_axis: int = MAPS) -> None:
        super().__init__()
        self.scale = nn.Parameter(coefficients[:terms].clone())
        self.shift = (
            nn.Parameter(coefficients[terms].clone()) if len(coefficients) > terms else None
        )
        self.channel_axis = channel_axis

    def forward(self, *terms: Tensor) -> Tensor:
        """terms: of one shape. Returns a new tensor of that shape."""
        return affine(terms, self.scale, self.shift, channel_axis=self.channel_axis)


def affine(
    terms: tuple[Tensor, ...], scale: Tensor, shift: Tensor | None, *, channel_axis: int
) -> Tensor:
    """Σ_k (1 + scale_k) ⊙ terms_k + shift. scale: [terms, channels]; shift: [channels]."""
    shape = (-1, *[1] * (-channel_axis - 1))
    total = terms[0] * (1 + scale[0]).view(shape)
    for index, term in enumerate(terms[1:], start=1):
        total = torch.addcmul(total, term, (1 + scale[index]).view(shape))
    return total if shift is None else total + shift.view(shape)


def put_after(module: nn.Module, stand_in: StandIn) -> None:
    """Let a module of published code hand on its first output through a stand-in.

    The stand-in becomes the submodule `stand_in`; a hook calls it, so that no other name changes.
    """
    module.add_module("stand_in", stand_in)
    module.register_forward_hook(_through_stand_in)


def _through_stand_in(module: nn.Module, inputs: Any, output: Any) -> Any:
    return with_first_tensor(output, module.get_submodule("stand_in"))

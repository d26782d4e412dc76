"""The order of images in memory: channels-last where a network computes faster so.

Only images are put in order. A convolution gives its result in the order of what it gets, so all
feature maps follow, and parameters, checkpoints and optimizers stay as they are.
"""

import torch
from torch import Tensor, nn


def to_memory_format(
    images: Tensor, model: nn.Module, *, channels_last: bool | None = None
) -> Tensor:
    """The same numbers in the order in memory that `model` is to compute in.

    Args:
        images: [batch, channels, height, width]; anything else is returned as it is.
        model: one whose class says `takes_channels_last = True` allows either order; another may
            hold a `view` that does not.
        channels_last: True or False whatever the model says; None: on a CPU, where it takes it.
    """
    if images.dim() != 4:
        return images
    if channels_last is False:
        return images.contiguous()
    takes_it = getattr(model, "takes_channels_last", False) is True
    if channels_last is None and not (takes_it and images.device.type == "cpu"):
        return images
    # not `contiguous`, which leaves images of one channel in an order that convolutions take for
    # channels-first
    return torch.empty_like(images, memory_format=torch.channels_last).copy_(images)

"""The memory format of images: channels-last where a network is faster with it.

Only images are converted. A convolution returns the format of its input, so that all feature maps
follow; parameters, checkpoints and optimizers stay as they are.
"""

import torch
from torch import Tensor, nn


def to_memory_format(
    images: Tensor, model: nn.Module, *, channels_last: bool | None = None
) -> Tensor:
    """The same numbers in the memory format that `model` should compute in.

    Args:
        images: [batch, channels, height, width]; anything else is returned unchanged.
        model: if its class says `takes_channels_last = True`, either format works. Other models
            may contain a `view` that fails on channels-last tensors.
        channels_last: True or False decides; None: channels-last on a CPU if the model takes it.
    """
    if images.dim() != 4:
        return images
    if channels_last is False:
        return images.contiguous()
    takes_it = getattr(model, "takes_channels_last", False) is True
    if channels_last is None and not (takes_it and images.device.type == "cpu"):
        return images
    # `contiguous` would leave images of one channel in a format that convolutions take for
    # channels-first
    return torch.empty_like(images, memory_format=torch.channels_last).copy_(images)

"""Mean and standard deviation of the training images."""

import torch
from torch import Tensor

from ela_probe.data.image_stores import Images

MEASURED_IMAGES = 10_000  # using more changes both by less than 0.001


def mean_and_std(images: Images, indices: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of pixels in [0, 1], computed in float64.

    Args:
        images: where to read.
        indices: int64 (N,); about 10,000 of them are read, evenly spaced.

    Returns:
        Both have C values. A channel without variance has standard deviation 1.
    """
    indices = indices[:: max(1, len(indices) // MEASURED_IMAGES)]
    total = torch.zeros(images.channels, dtype=torch.float64)
    squares = torch.zeros(images.channels, dtype=torch.float64)
    for part in torch.split(indices, 512):
        pixels = images.read(part).double() / 255
        total += pixels.sum((0, 2, 3))
        squares += pixels.square().sum((0, 2, 3))
    count = len(indices) * images.size**2
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0)
    # a constant channel carries no information, so any positive divisor will do
    std = torch.where(variance > 1e-12, variance.sqrt(), torch.ones_like(variance))
    return tuple(mean.tolist()), tuple(std.tolist())

"""Mean and standard deviation of the training images."""

import warnings

import torch
from torch import Tensor

from ela_probe.data.image_stores import Images
from ela_probe.data.pixels import DARK
from ela_probe.errors import DataWarning

MEASURED_IMAGES = 10_000  # using more changes both by less than 0.001


def mean_and_std(
    images: Images, indices: Tensor, *, source: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of pixels in [0, 1], computed in float64.

    Warns (DataWarning) when a channel is constant, or when all pixels are nearly black.

    Args:
        images: where to read.
        indices: int64 (N,); about 10,000 of them are read, evenly spaced.
        source: how a warning refers to the images.

    Returns:
        Both have C values. A channel without variance has standard deviation 1.
    """
    indices = indices[:: max(1, len(indices) // MEASURED_IMAGES)]
    total = torch.zeros(images.channels, dtype=torch.float64)
    squares = torch.zeros(images.channels, dtype=torch.float64)
    brightest = 0
    for part in torch.split(indices, 512):
        stored = images.read(part)
        brightest = max(brightest, int(stored.max()))
        pixels = stored.double() / 255
        total += pixels.sum((0, 2, 3))
        squares += pixels.square().sum((0, 2, 3))
    count = len(indices) * images.size**2
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0)
    is_constant = variance <= 1e-12
    # a constant channel carries no information, so any positive divisor will do
    std = torch.where(is_constant, torch.ones_like(variance), variance.sqrt())
    _warn(mean, is_constant, brightest, source)
    return tuple(mean.tolist()), tuple(std.tolist())


def _warn(mean: Tensor, is_constant: Tensor, brightest: int, source: str) -> None:
    if is_constant.all():
        values = ", ".join(f"{value:.3g}" for value in mean.tolist())
        problem = (
            f"have no variance: all pixels have the same value ({values}; 0 is black, 1 is white); "
            "check the files, e.g. for a picture that is only in an alpha channel, or for values "
            "that are small for their number type"
        )
    elif brightest < DARK:
        problem = (
            f"are nearly black: the brightest pixel is {brightest} of 255; scale them to the full "
            "range of their number type"
        )
    elif is_constant.any():
        channels = ", ".join(str(i) for i in is_constant.nonzero().flatten().tolist())
        problem = f"have no variance in channel {channels} (from 0); leave such channels out"
    else:
        return
    warnings.warn(f"the training images of {source} {problem}", DataWarning, stacklevel=4)

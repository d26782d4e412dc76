"""The standard augmentations: of small images a batch at a time, of photographs one by one.

torchvision's transforms draw once per call, so a batch needs a call an image: 39 ms for 128
images where this takes 2.4 ms (one core). It also draws from a seed of its own, so that an
epoch can be repeated exactly whatever else draws random numbers.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvf

from ela_probe.data.spec import Augmentation


def augmented(images: Tensor, kind: Augmentation, *, seed: int) -> Tensor:
    """Shift, and for "crop-flip" mirror, each image of a batch on its own.

    Shifts are uniform over -p..p pixels in both directions with p = size // 8 (4 of 32), zeros
    move in; mirroring, left to right, has probability 1/2. For "resized-crop-flip" see
    `random_crops`.

    Args:
        images: uint8 (B, C, H, W).
        kind: "none" gives the batch back as it is.
        seed: of all draws.

    Returns:
        A batch of the same shape and dtype.
    """
    if kind == "none":
        return images
    if kind == "resized-crop-flip":
        return random_crops(len(images), lambda i: images[i], size=images.shape[-1], seed=seed)
    generator = torch.Generator().manual_seed(seed)
    count, _, height, width = images.shape
    reach = height // 8
    top, left = torch.randint(2 * reach + 1, (2, count), generator=generator)
    windows = F.pad(images, (reach,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    shifted = windows[torch.arange(count), :, top, left]
    if kind == "crop":
        return shifted
    mirrored = torch.rand(count, 1, 1, 1, generator=generator) < 0.5
    return torch.where(mirrored, shifted.flip(-1), shifted)


def random_crops(count: int, image: Callable[[int], Any], *, size: int, seed: int) -> Tensor:
    """ImageNet's augmentation: a random part of each image, resized, and mirrored by chance.

    torchvision's RandomResizedCrop (8 to 100 % of the area, 3:4 to 4:3) and RandomHorizontalFlip.

    Args:
        image: gives each of `count` images as a PIL image or uint8 (C, H, W).
        size: height and width of the crops.
        seed: of all draws; the global random state stays as it is.

    Returns:
        uint8 (count, C, size, size).
    """
    crop = v2.Compose([v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return torch.stack([as_pixels(crop(image(i))) for i in range(count)])


def as_pixels(image: Any) -> Tensor:
    """uint8 (C, H, W) of a PIL image, or the tensor that it is."""
    return image if isinstance(image, Tensor) else tvf.pil_to_tensor(image)

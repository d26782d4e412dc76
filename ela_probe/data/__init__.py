"""Image data: where it comes from, how it is split, normalised, augmented and batched."""

from ela_probe.data.images import ImageData, open_data
from ela_probe.data.spec import Augmentation, DataSpec

__all__ = ["Augmentation", "DataSpec", "ImageData", "open_data"]

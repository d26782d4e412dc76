"""A data set of images as files."""

from pathlib import Path

import numpy as np


def write_images(prefix: Path, *, classes: int = 3, channels: int = 3, size: int = 16) -> Path:
    """Write PREFIX-train.npz (60 images) and PREFIX-test.npz (24); return the prefix.

    The brightest rows of an image tell its class.
    """
    generator = np.random.default_rng(0)
    for split, count in (("train", 60), ("test", 24)):
        labels = np.arange(count) % classes
        images = generator.integers(0, 120, (count, size, size, channels), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[label * 4 : label * 4 + 4] += 120
        np.savez(f"{prefix}-{split}.npz", images=images, labels=labels)
    return prefix

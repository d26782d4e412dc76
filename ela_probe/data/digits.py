"""scikit-learn's handwritten digits."""

import torch

from ela_probe.data.image_stores import ArrayImages
from ela_probe.data.splits import Splits
from ela_probe.data.stratified import stratified_order

SPLIT_SEED = 0  # not the user's seed: every run must have the same test images


def read_digits() -> Splits:
    """The 1,797 digits of 8 x 8 pixels, upsampled to 3 x 32 x 32; 360 are the test split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)
    large = torch.nn.functional.interpolate(small, size=32, mode="bilinear")
    images = large.round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(digits.target).long()
    order = stratified_order(labels, seed=SPLIT_SEED)
    test, train = (part.sort().values for part in torch.split(order, [360, len(order) - 360]))
    return Splits(
        train=ArrayImages(images[train], labels[train]),
        test=ArrayImages(images[test], labels[test]),
        classes=tuple(str(name) for name in digits.target_names),
        augment="crop",  # a mirrored digit is another symbol; a shifted one is the same
    )

"""Small detectors, images with objects in them, and annotations in COCO's format."""

from typing import Any

import torch
from torch import Tensor, nn

from ela_probe import create_model

# For images of 64 x 64: few channels, and anchors of 8 pixels at the finest level.
SMALL: dict[str, Any] = {
    "min_size": 64, "max_size": 64, "channels": 16, "head_size": 32, "anchor_size": 8,
}  # fmt: skip


def images_and_targets(
    count: int, *, size: int = 64, masks: bool = False, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, list[dict[str, Tensor]]]:
    """Noise with bright rectangles: one or two in each image, of two categories; none in the last.

    The last image has none if there are three or more.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, size, size, generator=generator, dtype=dtype) * 0.3
    targets = []
    for number in range(count):
        objects = 0 if count > 2 and number == count - 1 else 1 + number % 2
        corners = torch.randint(0, size // 2, (objects, 2), generator=generator)
        extents = torch.randint(size // 4, size // 2, (objects, 2), generator=generator)
        boxes = torch.cat([corners, corners + extents], dim=1)
        target = {"boxes": boxes.to(dtype), "labels": torch.arange(objects) % 2 + 1}
        inside = torch.zeros(objects, size, size, dtype=torch.uint8)
        for place, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
            images[number, place % 3, y1:y2, x1:x2] += 0.6
            inside[place, y1:y2, x1:x2] = 1
        targets.append({**target, "masks": inside} if masks else target)
    return images, torch.tensor([[size, size]] * count), targets


def settled_detector(name: str, **arguments: Any) -> Any:
    """A detector of two categories in eval mode, with the norms' statistics of one batch."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = create_model(name, **{"num_classes": 3, **SMALL, **arguments}).train()
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            norm.train()
            norm.momentum = 1.0
        with torch.no_grad():
            model(*images_and_targets(4, masks=name.startswith("mask")))
        for norm in norms:
            norm.momentum = 0.1
    return model.eval()

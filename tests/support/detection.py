"""Small detectors, images with objects in them, and annotations in COCO's format."""

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
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


def polygon_of(x: int, y: int, width: int, height: int) -> list[list[int]]:
    """The outline of a rectangle as COCO's polygons."""
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def coco_folder(folder: Path, *, images: int, seed: int = 0) -> Path:
    """Write images/0.png, ... and objects.json: bright rectangles on noise, of two categories.

    The last image has no objects, and one object of the second is a crowd. Widths differ. The ids
    of the images are 10, 11, ...
    """
    generator = torch.Generator().manual_seed(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    document: dict[str, list[Any]] = {
        "images": [], "annotations": [],
        "categories": [{"id": 7, "name": "square"}, {"id": 3, "name": "bar"}],
    }  # fmt: skip
    for number in range(images):
        width, height = 72 if number % 2 == 0 else 64, 64
        pixels = torch.randint(0, 80, (height, width, 3), generator=generator, dtype=torch.uint8)
        for place in range(0 if number == images - 1 else 1 + number % 2):
            x, y = torch.randint(2, 24, (2,), generator=generator).tolist()
            w, h = ((20, 20), (36, 12))[place]
            y += 30 * place
            h = min(h, height - y - 1)
            pixels[y : y + h, x : x + w, place] = 230
            crowd = int(number == 1 and place == 1)
            counts = _run_lengths(x, y, w, h, width=width, height=height)
            document["annotations"].append(
                {
                    "id": len(document["annotations"]) + 1,
                    "image_id": 10 + number,
                    "category_id": (7, 3)[place],
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": crowd,
                    "segmentation": {"size": [height, width], "counts": counts}
                    if crowd
                    else polygon_of(x, y, w, h),
                }
            )
        Image.fromarray(pixels.numpy()).save(folder / "images" / f"{number}.png")
        document["images"].append(
            {"id": 10 + number, "file_name": f"{number}.png", "width": width, "height": height}
        )
    (folder / "objects.json").write_text(json.dumps(document))
    return folder


def _run_lengths(x: int, y: int, w: int, h: int, *, width: int, height: int) -> list[int]:
    """The mask of a rectangle as COCO's uncompressed run lengths, column by column."""
    inside = torch.zeros(height, width, dtype=torch.bool)
    inside[y : y + h, x : x + w] = True
    counts, value = [0], False
    for pixel in inside.T.flatten().tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts

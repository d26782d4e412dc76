"""ObjectImages: images with boxes, labels and masks, by position or in padded batches."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.datasets import CocoDetection, VisionDataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvf

from ela_probe.data.batches import Batch
from ela_probe.data.image_stores import IN_MEMORY_BYTES
from ela_probe.system.extras import faster_coco_eval

Target = dict[str, Tensor]


class ObjectImages(CocoDetection):  # type: ignore[misc]
    """torchvision's CocoDetection with the targets that its detectors take.

    An image is float32 [3, height, width] in 0 to 1. A target has `boxes`, float32 [objects, 4] as
    x1, y1, x2, y2 in pixels; `labels`, int64 [objects] from 1; `area`, float32, in pixels;
    `iscrowd`, uint8; and with masks `masks`, uint8 [objects, height, width]. A set of at most 1 GiB
    is kept in memory once decoded.

    Args:
        folder: of the images. document: valid annotations, as COCO has them.
        indices: int64, the positions of the images among those of the document.
        labels: by the ids of the categories.
        masks: whether targets have masks.
        flip: mirror every other image of a batch, at random by the batch's seed.
    """

    def __init__(
        self,
        folder: Path,
        document: Mapping[str, Any],
        indices: Tensor,
        *,
        labels: Mapping[int, int],
        masks: bool,
        flip: bool,
    ) -> None:
        # CocoDetection's own reads a file with pycocotools; faster-coco-eval has the same class
        VisionDataset.__init__(self, folder)
        self.coco = faster_coco_eval().COCO(dict(document))
        images = document["images"]
        self.ids = [images[index]["id"] for index in indices.tolist()]
        self._labels, self.masks, self.flip = labels, masks, flip
        chosen = (images[index] for index in indices.tolist())
        shapes = [(image["height"], image["width"]) for image in chosen]
        self.sizes = torch.tensor(shapes).reshape(-1, 2)
        self.decoded_bytes = 3 * int(self.sizes.prod(dim=1).sum())
        self._decoded: dict[int, Tensor] = {}

    def __getitem__(self, index: int | Batch) -> Any:
        """Image and target for a position; for a Batch padded images, their sizes, and targets.

        Of a Batch the first item is {"images": [B, 3, H, W], "sizes": int64 [B, 2]}: each image
        lies in the upper left corner, and the rest is 0. The second is a list of B targets. Where
        other processes read parts of the same batch, the first item also has `padded_with`, int64
        [whole, 2], the sizes of the images of all: a `Detector` pads as for the whole batch.
        """
        if not isinstance(index, Batch):
            if not 0 <= index < len(self):
                raise IndexError(f"position {index} is out of range: there are {len(self)} images")
            return self._sample(index)
        samples = [self._sample(position) for position in index.positions.tolist()]
        if self.flip:
            mirror = v2.RandomHorizontalFlip()
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(index.seed)
                samples = [mirror(*sample) for sample in samples]
        sizes = torch.tensor([image.shape[-2:] for image, _ in samples])
        height, width = sizes.amax(dim=0).tolist()
        images = [
            F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1]))
            for image, _ in samples
        ]
        targets = [{n: _plain(value) for n, value in target.items()} for _, target in samples]
        inputs = {"images": _plain(torch.stack(images)), "sizes": sizes}
        if len(index.whole) > len(index.positions):
            inputs["padded_with"] = self.sizes[index.whole]
        return inputs, targets

    def _sample(self, position: int) -> tuple[Tensor, Target]:
        number = self.ids[position]
        pixels = self._decoded.get(number)
        if pixels is None:
            pixels = tvf.pil_to_tensor(self._load_image(number))
            if self.decoded_bytes <= IN_MEMORY_BYTES:
                self._decoded[number] = pixels
        image = tv_tensors.Image(tvf.to_dtype(pixels, torch.float32, scale=True))
        return image, self._target(number, size=(image.shape[-2], image.shape[-1]))

    def _target(self, number: int, *, size: tuple[int, int]) -> Target:
        found = self._load_target(number)
        boxes = torch.tensor([a["bbox"] for a in found], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        limits = torch.tensor([size[1], size[0], size[1], size[0]])
        boxes = torch.minimum(boxes.clamp_min(0), limits)
        areas = [a.get("area", a["bbox"][2] * a["bbox"][3]) for a in found]
        target: Target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
            "labels": torch.tensor([self._labels[a["category_id"]] for a in found]).long(),
            "area": torch.tensor(areas, dtype=torch.float32),
            "iscrowd": torch.tensor([int(a.get("iscrowd", 0)) for a in found], dtype=torch.uint8),
        }
        if self.masks:
            masks = [np.asarray(self.coco.annToMask(annotation)) for annotation in found]
            stacked = np.stack(masks) if masks else np.zeros((0, *size))
            target["masks"] = tv_tensors.Mask(torch.from_numpy(stacked.astype(np.uint8)))
        return target


def _plain(value: Tensor) -> Tensor:
    """The tensor without torchvision's type."""
    return value.as_subclass(torch.Tensor)

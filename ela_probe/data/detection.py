"""Images with the objects in them: sources `coco:IMAGES,ANNOTATIONS.json`, in seeded batches."""

import hashlib
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ela_probe.data.annotations import (
    LISTED,
    Annotations,
    category_names,
    has_masks,
    read_annotations,
    refuse,
)
from ela_probe.data.image_stores import IN_MEMORY_BYTES
from ela_probe.data.images import FILE_WORKERS
from ela_probe.data.object_images import ObjectImages
from ela_probe.data.source_files import coco_pairs
from ela_probe.data.source_names import absolute_source
from ela_probe.data.split_data import SplitData
from ela_probe.errors import DataError, DataWarning
from ela_probe.system.validation import Strict

IMAGE_SIZE = 800  # of the shorter side, as is usual on COCO
VAL_FRACTION = 0.1


class DetectionSpec(Strict):
    """Where annotated images come from, and how they become training, validation and test images.

    Of one pair of a folder and a file, `val_fraction` of the images are held out, for validation
    and for testing. A second pair is the validation split and the test split, a third one the test
    split.
    """

    source: str = Field(pattern="^coco:.", description="coco:IMAGES,ANNOTATIONS.json,..., absolute")
    categories: dict[int, str] = Field(min_length=1, description="names by the ids in the file")
    masks: bool = Field(description="whether every training object has a mask")
    image_size: int = Field(IMAGE_SIZE, ge=1, description="of the shorter side, in pixels")
    val_fraction: float = Field(VAL_FRACTION, ge=0, lt=1, description="of the images of one pair")
    seed: int = Field(0, ge=0, description="of the limited subset and the held-out images")
    limit: int | None = Field(None, ge=1, description="training images used")
    augment: Literal["none", "flip"] = "flip"
    skip_invalid: bool = Field(False, description="leave out broken entries of the annotations")

    @property
    def task(self) -> Literal["detection"]:
        """What a model for this data does."""
        return "detection"

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the categories; label i is the name i - 1."""
        return tuple(self.categories.values())

    @property
    def num_classes(self) -> int:
        """The categories and the background, which has label 0."""
        return len(self.categories) + 1

    @property
    def sample(self) -> str:
        """One sample in words."""
        return f"images with a shorter side of {self.image_size} pixels"

    def model_arguments(self) -> dict[str, int]:
        """Arguments that a model of the zoo needs to fit this data."""
        return {"num_classes": self.num_classes, "min_size": self.image_size}

    def example(self) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
        """A blank batch of one: a small image without objects."""
        images = torch.zeros(1, 3, 64, 64)
        target = {
            "boxes": torch.zeros(0, 4),
            "labels": torch.zeros(0, dtype=torch.int64),
            "masks": torch.zeros(0, 64, 64, dtype=torch.uint8),
        }
        return {"images": images, "sizes": torch.tensor([[64, 64]])}, [target]

    def with_source(self, source: str, *, root: object = None) -> "DetectionSpec":
        """The same categories and sizes in other images. Raises DataError: other data."""
        moved = absolute_source(source)
        if not moved.startswith("coco:"):
            raise DataError(
                f"{source} has no objects with boxes, but the model is a detector; expected "
                "coco:IMAGES,ANNOTATIONS.json"
            )
        return self.model_copy(update={"source": moved})


@dataclass(frozen=True)
class Part:
    """A folder and the valid annotations of its images, and which images of them are used."""

    folder: Path
    document: dict[str, Any]
    indices: Tensor


class DetectionData(SplitData[ObjectImages]):
    """The splits of a `coco:` source. Made by `open_detection`, or from a spec.

    A batch is {"images", "sizes"} and targets, as `ObjectImages` returns them.

    Warns (DataWarning) of what `skip_invalid` leaves out.

    Args:
        first: the annotations of the first pair, if they were read already.

    Raises:
        DataError: a file is missing or broken, or a split has no images.
    """

    spec: DetectionSpec
    SAMPLES = "images"
    BATCH_SIZE = 16
    NO_SAMPLES = (
        "choose a validation fraction above 0, or name a second folder with its annotations"
    )

    def __init__(self, spec: DetectionSpec, *, first: Annotations | None = None) -> None:
        self.spec = spec
        pairs = coco_pairs(spec.source.partition(":")[2])
        found: list[Part] = []
        for folder, file in pairs:
            read = first if not found else None
            read = read or read_annotations(folder, file, categories=spec.categories)
            if not spec.skip_invalid:
                refuse(read, file)
            elif read.problems:
                warnings.warn(
                    f"{file}: left out {read.annotations} annotations and {read.images} images "
                    f"that are broken: {'; '.join(read.problems[:LISTED])}"
                    f"{'; ...' if len(read.problems) > LISTED else ''}",
                    DataWarning,
                    stacklevel=3,
                )
            count = len(read.document["images"])
            if not count:
                raise DataError(f"{file} has no images; expected some")
            found.append(Part(folder, read.document, torch.arange(count)))
        train, *held_out = found
        order = np.random.default_rng(spec.seed).permutation(len(train.indices))
        shuffled = torch.from_numpy(order)
        kept = 0
        if not held_out:
            kept = round(len(shuffled) * spec.val_fraction)
            rest = Part(train.folder, train.document, shuffled[:kept].sort().values)
            held_out = [rest]
        used = shuffled[kept:][: spec.limit].sort().values
        if not len(used):
            raise DataError(f"{spec.source} has no training images left; hold out fewer of them")
        self._parts: dict[str, Part] = {
            "train": Part(train.folder, train.document, used),
            "val": held_out[0],
            "test": held_out[-1],
        }

    def labels_digest(self) -> str:
        """SHA-256 of the annotations for training and validation, and of the images used."""
        digest = hashlib.sha256()
        for split in ("train", "val"):
            part = self._parts[split]
            digest.update(json.dumps(part.document, sort_keys=True).encode())
            digest.update(part.indices.numpy().tobytes())
        return digest.hexdigest()

    def _indices(self, split: str) -> Tensor:
        return self._parts[split].indices

    def _dataset(self, split: str, indices: Tensor, *, augment: bool) -> ObjectImages:
        part = self._parts[split]
        return ObjectImages(
            part.folder,
            part.document,
            indices,
            labels={number: label for label, number in enumerate(self.spec.categories, start=1)},
            masks=self.spec.masks,
            flip=augment and self.spec.augment == "flip",
        )

    def _workers(self, dataset: ObjectImages) -> int:
        in_memory = dataset.decoded_bytes <= IN_MEMORY_BYTES
        return 0 if in_memory else min(FILE_WORKERS, torch.get_num_threads())

    def _described(self) -> str:
        return f"; {len(self.spec.classes)} categories"


def open_detection(
    source: str,
    *,
    limit: int | None = None,
    val_fraction: float | None = None,
    seed: int = 0,
    image_size: int | None = None,
    augment: str | None = None,
    skip_invalid: bool = False,
) -> DetectionData:
    """Open `coco:IMAGES,ANNOTATIONS.json`, with further pairs for validation and for testing.

    All annotations are checked first (`annotations.read_annotations`).

    Args:
        limit: use this many training images, a random subset that follows `seed`.
        val_fraction: of the images of a single pair, 0.1 when None.
        image_size: of the shorter side in the model, in pixels; 800 when None.
        augment: "flip" (the default) mirrors every other training image; "none".
        skip_invalid: leave out what is broken, and warn; otherwise it is an error.

    Raises:
        DataError: files are missing or broken, or an argument is out of range.
    """
    fraction = VAL_FRACTION if val_fraction is None else val_fraction
    size, chosen = image_size or IMAGE_SIZE, augment or "flip"
    for name, value, valid, expected in (
        ("validation fraction", fraction, 0 <= fraction < 1, "0 to 0.9"),
        ("limit", limit, limit is None or limit >= 1, "1 or more"),
        ("seed", seed, seed >= 0, "0 or more"),
        ("augment", chosen, chosen in ("flip", "none"), "flip or none"),
    ):
        if not valid:
            raise DataError(f"{name} {value} is out of range: expected {expected}")
    source = absolute_source(source)
    folder, file = coco_pairs(source.partition(":")[2])[0]
    first = read_annotations(folder, file)
    if not skip_invalid:
        refuse(first, file)
    spec = DetectionSpec(
        source=source,
        categories=category_names(first.document, file),
        masks=has_masks(first.document),
        image_size=size,
        val_fraction=fraction,
        seed=seed,
        limit=limit,
        augment=chosen,
        skip_invalid=skip_invalid,
    )
    return DetectionData(spec, first=first)

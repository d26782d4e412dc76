"""DataSpec: everything needed to open the same images again, normalised and split the same way.

Checkpoints contain it, so it has plain values only, and its paths are absolute.
"""

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ela_probe.data.source_names import absolute_root, absolute_source, task_of
from ela_probe.errors import DataError
from ela_probe.system.validation import Strict

LARGEST_SIZE = 2**13  # of an image in pixels, height and width

Augmentation = Literal["none", "crop", "crop-flip", "resized-crop-flip"]


class DataSpec(Strict):
    """Where images come from and how they become training, validation and test batches."""

    source: str = Field(
        description="digits, fashion-mnist, cifar10, cifar100, npz:P, folder:D or imagenet:D"
    )
    root: str | None = Field(None, description="folder of the torchvision data sets, absolute")
    image_size: int = Field(ge=1, le=LARGEST_SIZE, description="height and width in pixels")
    channels: int = Field(ge=1)
    mean: tuple[float, ...] = Field(description="per channel, of training images in [0, 1]")
    std: tuple[float, ...] = Field(description="per channel, of training images in [0, 1]")
    classes: tuple[str, ...] = Field(min_length=1, description="names in the order of the labels")
    val_fraction: float = Field(0.1, ge=0, lt=1, description="of the training images")
    seed: int = Field(0, ge=0, description="of the limited subset and the validation split")
    limit: int | None = Field(None, ge=1, description="training images used, validation included")
    augment: Augmentation = "none"

    @model_validator(mode="after")
    def _fits(self) -> "DataSpec":
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(
                f"got {len(self.mean)} means and {len(self.std)} standard deviations, expected "
                f"{self.channels} of each, one per channel"
            )
        if min(self.std) <= 0:
            raise ValueError(f"got standard deviations {self.std}, expected positive ones")
        return self

    @property
    def num_classes(self) -> int:
        """Number of classes K; labels are 0..K-1."""
        return len(self.classes)

    @property
    def task(self) -> Literal["images", "tokens"]:
        """What a model for this data reads."""
        return "images"

    @property
    def sample(self) -> str:
        """One sample in words."""
        return f"images of {self.channels} x {self.image_size} x {self.image_size}"

    def model_arguments(self) -> dict[str, int]:
        """Arguments that a model of the zoo needs to fit this data."""
        return {"num_classes": self.num_classes, "in_channels": self.channels}

    def example(self) -> tuple[Tensor, Tensor]:
        """A blank batch of one: an image, float32 (1, C, H, W), and its label, int64 (1,)."""
        image = torch.zeros(1, self.channels, self.image_size, self.image_size)
        return image, torch.zeros(1, dtype=torch.int64)

    def with_source(self, source: str, *, root: str | Path | None = None) -> "DataSpec":
        """The same normalisation, classes and split for data in another place.

        Raises:
            DataError: the source is unknown, or is text.
        """
        folder = absolute_root(root) if root is not None else self.root
        if (task := task_of(source)) != "images":
            found = {"tokens": "is text", "audio": "has sounds"}.get(task, "has objects with boxes")
            raise DataError(f"{source} {found}, but the model was trained to classify images")
        return self.model_copy(update={"source": absolute_source(source), "root": folder})

    def check_model(self, *, num_classes: int, in_channels: int) -> None:
        """Check that a model fits these images.

        Raises:
            DataError: the number of classes or of channels differs; the message gives both numbers.
        """
        differences = [
            f"{ours} {what} in the data, {theirs} in the model"
            for what, ours, theirs in (
                ("classes", self.num_classes, num_classes),
                ("channels", self.channels, in_channels),
            )
            if ours != theirs
        ]
        if differences:
            raise DataError(
                f"the data {self.source} doesn't fit the model: {'; '.join(differences)}; "
                "choose other data with --data, or build the model with the data's numbers"
            )

"""Where pixels are kept: uint8 arrays in memory, or image files that are decoded when read."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf

from ela_probe.data.augmentation import augment_batch, random_crops
from ela_probe.data.pixels import file_as_uint8, float_range
from ela_probe.data.spec import Augmentation
from ela_probe.errors import DataError
from ela_probe.system.reading import check_regular, refusing

IN_MEMORY_BYTES = 2**30
DECODED_AT_OPENING = 10_000
MOST_PIXELS = 2**27
MOST_ELONGATED = 200  # resized, a picture of 1 x 1,000,000 pixels would take gigabytes
WIDE_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")
"""Pillow's modes of more than 8 bits; its own conversion to RGB clips them."""


class Images(Protocol):
    """Labelled images of one size, read by index."""

    labels: Tensor
    """Class of each image, int64 (N,)."""
    channels: int
    size: int
    """Height and width in pixels."""
    in_memory: bool
    on_device: bool
    """Whether the pixels are in the memory of a device other than the CPU."""

    def check(self, indices: Tensor) -> None:
        """Find files that can't be read, as far as this takes little time. Raises DataError."""
        ...

    def read(self, indices: Tensor, *, augment: Augmentation = "none", seed: int = 0) -> Tensor:
        """uint8 (n, C, H, W) for int64 indices (n,); `seed` is the augmentation's seed."""
        ...


class ArrayImages:
    """Images in memory: uint8 (N, C, H, W), of any strides, and labels int64 (N,)."""

    in_memory = True

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.on_device = images, images.device.type != "cpu"
        self.labels = labels
        self.channels = images.shape[1]
        self.size = images.shape[-1]

    def check(self, indices: Tensor) -> None:
        """Nothing to find: the images are in memory."""

    def to(self, device: torch.device) -> "ArrayImages":
        """The same with the pixels in the memory of a device; labels and indices stay."""
        return ArrayImages(self.images.to(device), self.labels)

    def read(self, indices: Tensor, *, augment: Augmentation = "none", seed: int = 0) -> Tensor:
        """The images of these indices as [n, channels, height, width]; see `Images`."""
        indices = indices.to(self.images.device)
        return augment_batch(self.images.index_select(0, indices), augment, seed=seed)


class ImageFileError(DataError):
    """A file is not a readable image.

    DataLoader re-raises a worker's error as `type(error)(traceback text)`. The constructor keeps
    only the last line of such a text, the message.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rstrip().rsplit("ImageFileError: ", 1)[-1])


class FileImages:
    """Image files as RGB: the shorter side resized to `image_size`, then the centre cropped.

    A set of at most 1 GiB (after resizing) is kept in memory once decoded. A larger one is decoded
    again on every read.
    """

    channels = 3
    on_device = False

    def __init__(self, files: Sequence[tuple[str, int]], *, image_size: int) -> None:
        self.paths = [path for path, _ in files]
        self.labels = torch.tensor([label for _, label in files])
        self.size = image_size
        shape = (len(files), 3, image_size, image_size)
        self.in_memory = len(files) * 3 * image_size**2 <= IN_MEMORY_BYTES
        self._decoded = torch.empty(shape, dtype=torch.uint8) if self.in_memory else None
        self._is_decoded = torch.zeros(len(files), dtype=torch.bool)

    def check(self, indices: Tensor) -> None:
        """Decode the images if they are few and kept in memory; otherwise read their headers."""
        check_headers(self.paths[i] for i in indices.tolist())
        if self.in_memory and len(indices) <= DECODED_AT_OPENING:
            for part in torch.split(indices, 256):
                self._read(part)

    def read(self, indices: Tensor, *, augment: Augmentation = "none", seed: int = 0) -> Tensor:
        """The images of these indices as [n, channels, height, width]."""
        return augment_batch(self._read(indices), augment, seed=seed)

    def _read(self, indices: Tensor) -> Tensor:
        if self._decoded is None:
            return torch.stack([self._decode(self.paths[i]) for i in indices.tolist()])
        for i in indices[~self._is_decoded[indices]].tolist():
            self._decoded[i] = self._decode(self.paths[i])
            self._is_decoded[i] = True
        return self._decoded[indices]

    def _decode(self, path: str) -> Tensor:
        image = read_rgb(path)
        scale = self.size / min(image.size)
        width, height = (max(self.size, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        pixels: Tensor = tvf.center_crop(tvf.pil_to_tensor(image), [self.size, self.size])
        return pixels


class ImageNetFiles:
    """Image files as RGB, preprocessed as is usual for ImageNet, decoded again on every read.

    Without augmentation the shorter side is resized to 256/224 of `image_size` and the centre
    cropped. With "resized-crop-flip" a random part of the whole image is resized (`random_crops`).
    """

    channels = 3
    in_memory = on_device = False

    def __init__(self, files: Sequence[tuple[str, int]], *, image_size: int) -> None:
        # an array: a list of a million strings would be copied into every worker process
        self.paths = np.array([os.fsencode(path) for path, _ in files])
        self.labels = torch.tensor([label for _, label in files])
        self.size = image_size

    def check(self, indices: Tensor) -> None:
        """Nothing is read: opening a million files takes minutes."""

    def read(self, indices: Tensor, *, augment: Augmentation = "none", seed: int = 0) -> Tensor:
        """The images of these indices as [n, channels, height, width]."""
        paths = [os.fsdecode(path) for path in self.paths[indices.numpy()]]
        if augment == "resized-crop-flip":
            return random_crops(len(paths), lambda i: read_rgb(paths[i]), size=self.size, seed=seed)
        pixels = torch.stack([self._centre(read_rgb(path)) for path in paths])
        return augment_batch(pixels, augment, seed=seed)

    def _centre(self, image: Image.Image) -> Tensor:
        resized = tvf.resize(image, [round(self.size * 256 / 224)])
        pixels: Tensor = tvf.pil_to_tensor(tvf.center_crop(resized, [self.size, self.size]))
        return pixels


def read_rgb(path: str) -> Image.Image:
    """The image in a file, as RGB. An alpha channel is dropped; for wide pixels see `pixels`.

    Raises:
        ImageFileError: the file can't be read, or has pixel values that `pixels` refuses.
    """
    with _opened(path) as file:
        if file.mode not in WIDE_MODES:
            return file.convert("RGB")
        pixels = np.asarray(file)
        if file.mode == "I" and file.format in ("PNG", "PPM"):
            pixels = pixels.astype(np.uint16)  # these have 16 bits at most
        return Image.fromarray(file_as_uint8(pixels, f"pixels of {path}")).convert("RGB")


@contextmanager
def _opened(path: str) -> Iterator[Image.Image]:
    """A picture of bounded size, not yet decoded.

    Raises:
        ImageFileError: whatever Pillow, the rules of `pixels` or the block raise.
    """
    shown = printable(path)
    try:
        check_regular(path, what="the picture", expected="an image file", error=DataError)
        with (
            refusing(DataError, f"{shown} is not a readable image", "remove or replace it"),
            Image.open(path) as file,
        ):
            _check_size(path, *file.size)
            yield file
    except DataError as error:
        raise ImageFileError(printable(str(error))) from None


def _check_size(path: str, width: int, height: int) -> None:
    """Raise DataError where a picture would take gigabytes, decoded or resized."""
    if width * height > MOST_PIXELS or max(width, height) > MOST_ELONGATED * min(width, height):
        raise DataError(
            f"{path} has {width:,} x {height:,} pixels; expected at most {MOST_PIXELS:,}, and one "
            f"side at most {MOST_ELONGATED} times as long as the other; remove or replace it"
        )


def check_headers(paths: Iterable[str]) -> None:
    """Check that files begin like images, and that all floats have the same range.

    Raises:
        ImageFileError: a file doesn't, or floats are in 0 to 1 in one file and in 0 to 255 in
            another.
    """
    example: dict[int | None, str] = {}
    for path in paths:
        with _opened(path) as file:
            extrema = file.getextrema() if file.mode == "F" else (0, 0)
        if extrema != (0, 0):
            example.setdefault(float_range(*extrema), path)
    if None in example:
        read_rgb(example[None])  # raises
    if len(example) > 1:
        raise ImageFileError(
            printable(
                f"pixels are floats in 0 to 1 in {example[1]} but in 0 to 255 in {example[255]}; "
                "scale all files alike"
            )
        )


def printable(text: str) -> str:
    """`text` with what isn't valid UTF-8 (as in file names) escaped."""
    return text.encode(errors="backslashreplace").decode()

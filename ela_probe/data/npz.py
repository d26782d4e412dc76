"""Images and labels in NumPy's `.npz` files.

There are two layouts: a file for each split with the arrays `images` and `labels`, or one file with
`train_images`, `train_labels` and so on, as MedMNIST writes it (or `x_train`, `y_train`, as Keras
does). A validation split is optional; it is the test split where there is no other.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ela_probe.data.image_stores import ArrayImages
from ela_probe.data.labels import class_indices, class_names
from ela_probe.data.pixels import as_uint8, common_factor
from ela_probe.data.source_files import SPLITS, npz_files
from ela_probe.data.source_names import NPZ_SPLIT
from ela_probe.data.splits import Splits, first_difference, held_out
from ela_probe.errors import DataError
from ela_probe.system.array_files import array_names, read_arrays
from ela_probe.system.reading import refusing

ONE_FILE_KEYS = (
    {split: (f"{split}_images", f"{split}_labels") for split in SPLITS},  # MedMNIST
    {split: (f"x_{split}", f"y_{split}") for split in SPLITS},  # Keras
)


@dataclass
class Part:
    """The arrays of one split, as stored."""

    images: npt.NDArray[Any]
    labels: npt.NDArray[Any]
    images_name: str
    """For error messages: the array's name and its file."""
    labels_name: str


def read_npz(path: str) -> Splits:
    """The images of PATH-train.npz and PATH-test.npz, of PATH, or of PATH.npz.

    Raises:
        DataError: a file is missing or can't be read, or its arrays are not images and labels.
    """
    parts, names = _read_parts(path)
    for part in parts.values():
        _check_shapes(part)
    channels = {part.images_name: _channels(part.images) for part in parts.values()}
    if len(set(channels.values())) > 1:
        found = ", ".join(f"{count} in {name}" for name, count in channels.items())
        raise DataError(f"numbers of channels differ: {found}; expected the same in all splits")
    labels = {
        split: class_indices(
            part.labels, name=part.labels_name, num_classes=None if names is None else len(names)
        )
        for split, part in parts.items()
    }
    factor = common_factor({part.images_name: part.images for part in parts.values()})
    images: dict[str, ArrayImages] = {}
    for split, part in parts.items():
        part.images = as_uint8(part.images, factor)  # frees the stored array before the next one
        images[split] = ArrayImages(_channels_first(part.images), labels[split])
    test, val = held_out(images)
    return Splits(
        train=images["train"],
        val=None if val is None else images[val],
        test=images[test],
        classes=names or _numbers(parts, labels),
        augment="crop-flip",
    )


def _read_parts(path: str) -> tuple[dict[str, Part], tuple[str, ...] | None]:
    """The arrays of all splits, and the class names where there are any."""
    found = npz_files(path)
    if isinstance(found, Path):
        return _read(found, None)
    parts: dict[str, Part] = {}
    named: tuple[Path, tuple[str, ...]] | None = None
    for split, file in found.items():
        read, names = _read(file, {split: ("images", "labels")})
        parts |= read
        if names is None:
            continue
        named = named or (file, names)
        if names != named[1]:
            raise DataError(
                f"class names differ between {named[0]} and {file}: "
                f"{first_difference(named[1], names)}; write both from one list"
            )
    return parts, None if named is None else named[1]


def _read(
    file: Path, keys: Mapping[str, tuple[str, str]] | None
) -> tuple[dict[str, Part], tuple[str, ...] | None]:
    """The splits in one file under the array names `keys`; None finds the names."""
    damaged = f"{file} can't be read as an .npz file of plain arrays"
    with refusing(DataError, damaged, "write it with numpy.savez"):
        with file.open("rb") as stream:
            names = array_names(stream)
            if keys is None:
                keys = _one_file_keys(file, names)
            needed = {key for pair in keys.values() for key in pair}
            missing = [key for pair in keys.values() for key in pair if key not in names]
            if missing:
                raise DataError(
                    f"{file} contains no {' and no '.join(missing)} (it contains "
                    f"{', '.join(names) or 'nothing'}); expected images and labels"
                )
            arrays = read_arrays(stream, {*needed, "classes"}.__contains__)
        classes = arrays["classes"].ravel().tolist() if "classes" in arrays else None
        parts = {
            split: Part(
                arrays[images], arrays[labels], f"{images} in {file}", f"{labels} in {file}"
            )
            for split, (images, labels) in keys.items()
        }
    return parts, None if classes is None else class_names(classes, f"classes in {file}")


def _one_file_keys(file: Path, found: Sequence[str]) -> Mapping[str, tuple[str, str]]:
    """The array names of each split in a file that has all splits."""
    for layout in ONE_FILE_KEYS:
        keys = {split: pair for split, pair in layout.items() if not set(pair).isdisjoint(found)}
        if "train" in keys and len(keys) > 1:
            return keys
    split = re.search(NPZ_SPLIT, str(file))
    if split and "images" in found:
        prefix = re.sub(NPZ_SPLIT, "", str(file))
        raise DataError(f"{file} has only the {split[1]} split; write npz:{prefix}")
    raise DataError(
        f"{file} contains {', '.join(found) or 'nothing'}; expected train_images, train_labels, "
        "test_images and test_labels, or a file for each split (see npz:PREFIX)"
    )


def _check_shapes(part: Part) -> None:
    images, name = part.images, part.images_name
    if images.ndim not in (3, 4):
        raise DataError(
            f"{name} are {images.dtype} {images.shape}, expected (N, H, W) or (N, H, W, C)"
        )
    if not images.size:
        raise DataError(f"{name} are empty, shape {images.shape}")
    if images.ndim == 4 and images.shape[1] in (1, 3, 4) and images.shape[2] == images.shape[3] > 4:
        raise DataError(
            f"{name} have shape {images.shape}, channels first; expected (N, H, W, C): store "
            "images.transpose(0, 2, 3, 1)"
        )
    if part.labels.ndim and len(images) != len(part.labels):
        raise DataError(
            f"{name} has {len(images)} images but {len(part.labels)} labels ({part.labels_name}); "
            "expected equally many"
        )


def _channels(images: npt.NDArray[Any]) -> int:
    return images.shape[3] if images.ndim == 4 else 1


def _channels_first(images: npt.NDArray[np.uint8]) -> Tensor:
    """A view (N, C, H, W) of images (N, H, W) or (N, H, W, C): nothing is copied."""
    pixels = torch.from_numpy(images)
    return pixels.movedim(3, 1) if pixels.ndim == 4 else pixels[:, None]


def _numbers(parts: Mapping[str, Part], labels: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Class names "0", "1", ... up to the highest label, or to the width of one-hot labels."""
    highest = max(int(values.max()) for values in labels.values())
    width = max(part.labels.shape[1] if part.labels.ndim == 2 else 0 for part in parts.values())
    return tuple(str(label) for label in range(max(highest + 1, width)))

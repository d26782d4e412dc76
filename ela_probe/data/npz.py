"""Images and labels in NumPy's `.npz` files."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ela_probe.data.image_stores import ArrayImages
from ela_probe.data.splits import Splits, first_difference
from ela_probe.errors import DataError
from ela_probe.system.messages import first_line


def read_npz(prefix: str) -> Splits:
    """Images of PREFIX-train.npz and PREFIX-test.npz. Raises DataError."""
    files = {split: Path(f"{prefix}-{split}.npz") for split in ("train", "test")}
    for path in files.values():
        if not path.is_file():
            raise DataError(
                f"{path} does not exist; npz:{prefix} needs {prefix}-train.npz and "
                f"{prefix}-test.npz, each with images (uint8, N x H x W x C) and labels"
            )
    arrays = {split: _arrays(path) for split, path in files.items()}
    names = {split: names for split, (_, _, names) in arrays.items() if names is not None}
    if len(set(names.values())) > 1:
        raise DataError(
            f"class names differ between {files['train']} and {files['test']}: "
            f"{first_difference(names['train'], names['test'])}; write both from one list"
        )
    highest = max(int(labels.max()) for _, labels, _ in arrays.values())
    classes = next(iter(names.values()), tuple(str(label) for label in range(highest + 1)))
    for split, (_, labels, _) in arrays.items():
        if int(labels.max()) >= len(classes):
            raise DataError(
                f"{files[split]} has label {int(labels.max())}, expected 0 to "
                f"{len(classes) - 1} ({len(classes)} classes are named)"
            )
    train, test = (ArrayImages(images, labels) for images, labels, _ in arrays.values())
    if train.channels != test.channels:
        raise DataError(
            f"{files['train']} has {train.channels} channels, {files['test']} {test.channels}; "
            "expected the same number"
        )
    return Splits(train=train, test=test, classes=classes, augment="crop-flip")


def _arrays(path: Path) -> tuple[Tensor, Tensor, tuple[str, ...] | None]:
    """Images (N, C, H, W), labels (N,), and the class names if the file has them."""
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in ("images", "labels") if key not in file.files]
            if missing:
                raise DataError(
                    f"{path} contains no {' and no '.join(missing)} (it contains "
                    f"{', '.join(file.files) or 'nothing'}): expected images and labels"
                )
            images, labels = file["images"], file["labels"]
            named = file["classes"] if "classes" in file.files else None
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib, pickle and NumPy raise errors of many types
        raise DataError(
            f"{path} can't be read as an .npz file of plain arrays ({first_line(error)}); write it "
            "with numpy.savez"
        ) from error
    if images.dtype != np.uint8 or images.ndim != 4:
        raise DataError(
            f"{path}: images are {images.dtype} {images.shape}, expected uint8 (N, H, W, C)"
        )
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(f"{path}: labels are {labels.dtype} {labels.shape}, expected integers (N,)")
    if len(images) != len(labels):
        raise DataError(f"{path}: {len(images)} images but {len(labels)} labels")
    if not images.size:
        raise DataError(f"{path}: images are empty, shape {images.shape}")
    if labels.min() < 0:
        raise DataError(f"{path} has label {labels.min()}, expected 0 or more")
    names = None if named is None else tuple(str(name) for name in named.ravel())
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return pixels, torch.from_numpy(labels.astype(np.int64)), names

"""Fashion-MNIST's IDX files, in the folders of torchvision or of Debian's package."""

import gzip
import math
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ela_probe.errors import DataError
from ela_probe.system.reading import refusing

LARGEST_FILE = 2**28  # bytes; Fashion-MNIST's largest file has 47 million


def read_fashion_mnist_split(root: Path, split: str) -> tuple[Tensor, Tensor]:
    """One split, "train" or "test", zero-padded from 28 x 28 to 32 x 32.

    The files, gzipped or not, are in `root` (Debian: /usr/share/datasets/fashion-mnist) or in
    `root`/FashionMNIST/raw (torchvision).

    Returns:
        Images uint8 (N, 1, 32, 32) and labels int64 (N,).

    Raises:
        DataError: a file is missing, or is not an IDX file.
    """
    stem = "train" if split == "train" else "t10k"
    images = _read_idx(_find(root, f"{stem}-images-idx3-ubyte"), dimensions=3)
    labels = _read_idx(_find(root, f"{stem}-labels-idx1-ubyte"), dimensions=1)
    if len(images) != len(labels) or not len(images) or labels.max() > 9:
        raise DataError(
            f"the {stem} files in {root} have {len(images)} images and {len(labels)} labels; "
            "expected equally many, with labels 0 to 9; fetch them again with --download"
        )
    if images.shape[1:] != (28, 28):
        raise DataError(
            f"the {stem} images in {root} have {' x '.join(map(str, images.shape[1:]))} pixels, "
            "expected 28 x 28; fetch them again with --download"
        )
    padded = np.pad(images[:, None], ((0, 0), (0, 0), (2, 2), (2, 2)))
    return torch.from_numpy(padded), torch.from_numpy(labels.astype(np.int64))


def _find(root: Path, name: str) -> Path:
    for folder in (root, root / "FashionMNIST" / "raw"):
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    raise DataError(
        f"fashion-mnist is not in {root} (no {name}, with or without .gz); point --data-root at "
        "it, or add --download"
    )


def _read_idx(path: Path, *, dimensions: int) -> npt.NDArray[np.uint8]:
    """The array in an IDX file, read-only: its bytes are not copied."""
    with (
        refusing(DataError, f"{path} can't be read", "fetch it again"),
        gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file,
    ):
        content = file.read(LARGEST_FILE)
    header = 4 + 4 * dimensions
    magic = bytes((0, 0, 8, dimensions))  # 8: unsigned bytes
    shape = struct.unpack(f">{dimensions}I", content[4:header]) if len(content) >= header else ()
    if content[:4] != magic or len(content) != header + math.prod(shape):
        raise DataError(
            f"{path} is not an IDX file of bytes in {dimensions} dimensions, or is truncated; "
            "fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)

"""Fashion-MNIST's IDX files, in the folders of torchvision or of Debian's package."""

import gzip
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf

from ela_probe.errors import DataError


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
    if len(images) != len(labels) or not len(images) or int(labels.max()) > 9:
        raise DataError(
            f"the {stem} files in {root} have {len(images)} images and {len(labels)} labels; "
            "expected equally many, with labels 0 to 9; fetch them again with --download"
        )
    return tvf.pad(images[:, None], [2, 2]), labels.long()


def _find(root: Path, name: str) -> Path:
    for folder in (root, root / "FashionMNIST" / "raw"):
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    raise DataError(
        f"fashion-mnist is not in {root} (no {name}, with or without .gz); point --data-root at "
        "it, or add --download"
    )


def _read_idx(path: Path, *, dimensions: int) -> Tensor:
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError) as error:
        raise DataError(f"{path} can't be read ({error}); fetch it again") from error
    header = 4 + 4 * dimensions
    shape = tuple(np.frombuffer(content[4:header], ">u4").astype(int))
    magic = bytes((0, 0, 8, dimensions))  # 8: unsigned bytes
    if content[:4] != magic or len(content) != header + math.prod(shape):
        raise DataError(
            f"{path} is not an IDX file of bytes in {dimensions} dimensions, or is truncated; "
            "fetch it again"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy())

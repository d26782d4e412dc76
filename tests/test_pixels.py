"""Pixels of any number type become uint8 by the table in `pixels`, in arrays and in files."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ela_probe.data.images import ImageData
from ela_probe.data.opening import Data, open_data
from ela_probe.data.pixels import as_uint8, common_factor
from ela_probe.errors import DataError, DataWarning

GREY = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
"""All 256 values once."""


def as_read(**arrays: np.ndarray) -> dict[str, np.ndarray]:
    factor = common_factor(arrays)
    return {name: as_uint8(array, factor) for name, array in arrays.items()}


@pytest.mark.parametrize(
    "stored",
    [
        GREY,
        GREY.astype(np.uint16),
        GREY.astype(np.int16),
        GREY.astype(np.int64),
        GREY.astype(">u2"),
        GREY.astype(np.uint16) * 257,  # 65535 / 255
        GREY.astype(np.uint32) * (2**32 // 255),
        GREY.astype(np.uint64) * (2**64 // 255),
        (GREY.astype(np.float64) / 255 * (2**15 - 1)).round().astype(np.int16),
        GREY / 255,
        (GREY / 255).astype(np.float32),
        (GREY / 255).astype(np.float16),
        GREY.astype(np.float64),
        GREY.astype(np.float32),
        GREY + np.where(GREY == 255, 0.2, 0.0),
        GREY / 255 * 1.0005 - 0.0002,
    ],
    ids=lambda stored: f"{stored.dtype} to {stored.max():g}",
)
def test_all_256_levels_survive(stored: np.ndarray) -> None:
    read = as_read(images=stored)["images"]
    assert read.dtype == np.uint8
    assert np.array_equal(read, GREY)


def test_booleans_are_black_and_white() -> None:
    assert as_read(x=GREY > 99)["x"].sum() == 255 * 156


@given(st.lists(st.integers(0, 65535), min_size=1, max_size=50))
def test_16_bits_are_rounded_to_the_nearest_level(values: list[int]) -> None:
    stored = np.array([65535, *values], np.uint16)
    read = as_read(x=stored)["x"]
    assert np.abs(read * 257.0 - stored).max() <= 257 / 2


def test_splits_are_scaled_alike() -> None:
    read = as_read(train=GREY / 255, test=np.full((1, 2, 2), 0.2))
    assert (read["test"] == 51).all()
    read = as_read(train=GREY.astype(float), test=np.full((1, 2, 2), 0.2))
    assert (read["test"] == 0).all()
    read = as_read(train=GREY.astype(np.uint16) * 257, test=np.full((1, 2, 2), 200, np.uint16))
    assert (read["test"] == 1).all()


def test_large_arrays_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.random.default_rng(0).integers(0, 65536, (7, 4, 4), dtype=np.uint16)
    expected = as_read(x=whole)["x"]
    monkeypatch.setattr("ela_probe.data.pixels.CHUNK", 20)
    assert np.array_equal(as_read(x=whole)["x"], expected)


def test_uint8_is_not_copied() -> None:
    assert np.shares_memory(as_read(x=GREY)["x"], GREY)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ([GREY / 100], "float64 with values from 0 to 2.55, expected 0 to 1, or 0 to 255"),
        ([GREY * 2.0], "values from 0 to 510"),
        ([GREY / 127.5 - 1], "values from -1 to 1"),
        ([np.array([[[np.nan, 1.0]]])], "from nan to nan.*no NaN"),
        ([np.array([[[np.inf, 1.0]]])], "to inf"),
        ([GREY.astype(np.int16) - 128], "int16 with values from -128 to 127.*no negative"),
        ([GREY.astype(complex)], "complex128, expected integers"),
        ([GREY.astype(str)], "expected integers"),
        ([GREY, GREY / 255], "uint8 in a0, float64 in a1; write all splits in one type"),
    ],
)
def test_refused_values(arrays: list[np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        common_factor({f"a{i}": array for i, array in enumerate(arrays)})


def write_files(root: Path, make: Callable[[int], Image.Image], extension: str) -> str:
    """folder:ROOT of two classes whose images `make` makes from a number."""
    for split in ("train", "test"):
        for label in range(2):
            folder = root / split / str(label)
            folder.mkdir(parents=True)
            for i in range(3):
                make(label * 3 + i).save(folder / f"{i}.{extension}")
    return f"folder:{root}"


def pixels_of(data: Data) -> torch.Tensor:
    """uint8 pixels of the test images."""
    assert isinstance(data, ImageData)
    test = data.dataset("test")
    return test.images.read(test.indices)


RAMP = np.add.outer(np.arange(32), np.arange(32)) / 62  # 0 to 1


@pytest.mark.parametrize(
    ("scale", "dtype", "extension"),
    [
        (65535, np.uint16, "png"),
        (65535, np.uint16, "tif"),
        (2**31 - 1, np.int32, "tif"),
        (1, np.float32, "tif"),
        (255, np.float32, "tiff"),
    ],
)
def test_wide_files_are_scaled_by_their_range(
    tmp_path: Path, scale: int, dtype: type, extension: str
) -> None:
    def make(number: int) -> Image.Image:
        return Image.fromarray((RAMP * (1 - number / 20) * scale).astype(dtype))

    def make_8_bits(number: int) -> Image.Image:
        return Image.fromarray((RAMP * (1 - number / 20) * 255).round().astype(np.uint8))

    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        wide = open_data(write_files(tmp_path / "wide", make, extension))
        narrow = open_data(write_files(tmp_path / "narrow", make_8_bits, "png"))
    difference = pixels_of(wide).int() - pixels_of(narrow).int()
    assert difference.abs().max() <= 1
    assert wide.spec.mean == pytest.approx(narrow.spec.mean, abs=0.01)
    assert wide.spec.std == pytest.approx(narrow.spec.std, abs=0.01)


def test_a_dark_16_bit_file_stays_dark(tmp_path: Path) -> None:
    def make(number: int) -> Image.Image:
        return Image.fromarray((RAMP * (200 if number else 65535)).astype(np.uint16))

    pixels = pixels_of(open_data(write_files(tmp_path, make, "png")))
    assert pixels.amax((1, 2, 3)).tolist() == [255, 1, 1, 1, 1, 1]


def test_float_files_of_two_ranges_are_refused(tmp_path: Path) -> None:
    def make(number: int) -> Image.Image:
        return Image.fromarray((RAMP * (255 if number == 4 else 1)).astype(np.float32))

    with pytest.raises(DataError, match=r"0 to 1 in .*0/0\.tif but in 0 to 255 in .*1/1\.tif"):
        open_data(write_files(tmp_path, make, "tif"))


@pytest.mark.parametrize("worst", [-1.0, 300.0, np.nan])
def test_float_files_out_of_range_are_named(tmp_path: Path, worst: float) -> None:
    def make(number: int) -> Image.Image:
        pixels = RAMP.astype(np.float32)
        pixels[0, 0] = worst if number == 4 else 0
        return Image.fromarray(pixels)

    with pytest.raises(DataError, match=r"pixels of .*1/1\.tif are float32 with values from"):
        open_data(write_files(tmp_path, make, "tif"))


def test_transparency_is_dropped(tmp_path: Path) -> None:
    def make(number: int) -> Image.Image:
        colour = np.stack([RAMP * (100 + number)] * 3 + [np.zeros_like(RAMP)], axis=2)
        return Image.fromarray(colour.astype(np.uint8))

    data = open_data(write_files(tmp_path, make, "png"))
    assert pixels_of(data)[:, 0, -1, -1].tolist() == [100, 101, 102, 103, 104, 105]


def test_images_without_variance_warn(tmp_path: Path) -> None:
    def make(number: int) -> Image.Image:
        return Image.new("RGBA", (8, 8), (0, 0, 0, number))

    with pytest.warns(DataWarning, match=r"no variance: .*\(0, 0, 0; 0 is black.*alpha channel"):
        open_data(write_files(tmp_path, make, "png"))


def test_nearly_black_images_warn(tmp_path: Path) -> None:
    def make(number: int) -> Image.Image:
        return Image.fromarray((RAMP * 4095).astype(np.uint16))  # 12 bits

    with pytest.warns(DataWarning, match="nearly black: the brightest pixel is 16 of 255"):
        open_data(write_files(tmp_path, make, "png"))


def test_a_constant_channel_warns(tmp_path: Path) -> None:
    def make(number: int) -> Image.Image:
        return Image.fromarray(np.stack([RAMP * 255, RAMP * 0, RAMP * 99], 2).astype(np.uint8))

    with pytest.warns(DataWarning, match="no variance in channel 1"):
        open_data(write_files(tmp_path, make, "png"))

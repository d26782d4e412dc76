"""Pixels of any number type as uint8, by one rule.

| stored as | becomes |
|---|---|
| uint8 | unchanged |
| booleans | False is 0, True is 255 |
| integers of 16 bits or more, no value above 255 | unchanged: 8-bit values in a wider type |
| other integers | scaled by the range of the type: 65535 of uint16 becomes 255 |
| floats in 0 to 1 | times 255 |
| floats in 0 to 255 (of a data set, some above 32) | unchanged, rounded |
| negative values, NaN, larger floats | refused; the message gives minimum and maximum |

The rule looks at all arrays of a data set together. An image file is scaled alone, so an integer
file always by the range of its type: a dark picture stays dark.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ela_probe.errors import DataError

CHUNK = 2**22
"""Pixels that are converted at a time."""
DARK = 32
"""A data set without a brighter pixel (of 255) is read wrongly, or keeps too few grey levels."""
TOLERANCE = 1e-3
"""Floats may exceed their range by this share of it, as after resizing; they are clipped."""

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]


def common_factor(arrays: Mapping[str, Array]) -> float:
    """What all pixels of a data set are multiplied with to be in 0 to 255.

    Args:
        arrays: the arrays of all splits, by the name that an error message uses.

    Raises:
        DataError: the types differ, or the rule refuses the values.
    """
    types = {name: array.dtype for name, array in arrays.items()}
    if len(set(types.values())) > 1:
        found = ", ".join(f"{dtype} in {name}" for name, dtype in types.items())
        raise DataError(f"image types differ: {found}; write all splits in one type, best uint8")
    names, dtype = " and ".join(arrays), next(iter(types.values()))
    if dtype.kind not in "biuf":
        raise DataError(f"{names} are {dtype}, expected integers (best uint8) or floats")
    if dtype == np.uint8:
        return 1
    minimum = min(array.min().item() for array in arrays.values())
    maximum = max(array.max().item() for array in arrays.values())
    return _factor(dtype, minimum, maximum, names, whole_set=True)


def as_uint8(pixels: Array, factor: float) -> Bytes:
    """round(pixels * factor), clipped to 0..255; uint8 pixels are not copied when factor is 1."""
    if pixels.dtype == np.uint8 and factor == 1:
        return pixels.astype(np.uint8, copy=False)
    out = np.empty(pixels.shape, np.uint8)
    step = max(1, CHUNK * len(pixels) // pixels.size)
    for start in range(0, len(pixels), step):
        part = pixels[start : start + step].astype(np.float64) * factor
        out[start : start + step] = np.rint(part, out=part).clip(0, 255, out=part)
    return out


def file_as_uint8(pixels: Array, name: str) -> Bytes:
    """The pixels of one image file as uint8. Raises DataError when the rule refuses them."""
    minimum, maximum = pixels.min().item(), pixels.max().item()
    return as_uint8(pixels, _factor(pixels.dtype, minimum, maximum, name, whole_set=False))


def float_range(minimum: float, maximum: float) -> int | None:
    """1 for floats in 0 to 1, 255 for floats in 0 to 255, None for others (also for NaN)."""
    for limit in (1, 255):
        if -TOLERANCE * limit <= minimum and maximum <= limit * (1 + TOLERANCE):
            return limit
    return None


def _factor(
    dtype: np.dtype[Any], minimum: float, maximum: float, name: str, *, whole_set: bool
) -> float:
    """What a pixel is multiplied with to be in 0 to 255."""
    if dtype.kind == "f":
        limit = float_range(minimum, maximum)
        too_dark = whole_set and limit == 255 and maximum < DARK
        if limit is not None and not too_dark:
            return 255 / limit
    elif dtype.kind == "b":
        return 255
    elif minimum >= 0:
        if dtype == np.uint8 or (whole_set and dtype.itemsize > 1 and maximum <= 255):
            return 1
        return 255 / int(np.iinfo(dtype).max)
    expected = "0 to 1, or 0 to 255" if dtype.kind == "f" else "no negative ones"
    if math.isnan(minimum):
        expected += " and no NaN"
    raise DataError(
        f"{name} are {dtype} with values from {minimum:g} to {maximum:g}, expected "
        f"{expected}; shift and scale them first, best to uint8"
    )

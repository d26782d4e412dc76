"""What a sample of a data set looks like: as an image, or in words."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ela_probe.errors import printable

WORDS = 80  # the most characters of a text
THUMBNAIL = 64  # pixels
NUMBERS = 12  # the most numbers of a sequence


def picture_of(sample: Any, names: Sequence[str] = ()) -> tuple[NDArray[np.uint8] | None, str]:
    """An image of a sample, if it is one, and a few words: its class, or the text itself.

    An image is stretched to the full range of values, since a model's input is normalised.

    Args:
        sample: an image [channels, height, width] or [height, width], numbers, or text; or a pair
            of one of these and its label.
        names: of the classes.

    Returns: [height, width, 3] uint8, or None; and the words, which may be empty.
    """
    label = None
    if isinstance(sample, tuple | list) and len(sample) == 2:
        sample, label = sample
    words = []
    if label is not None and np.ndim(label) == 0:
        number = int(label)
        words.append(printable(names[number]) if 0 <= number < len(names) else f"class {number}")
    if isinstance(sample, str):
        return None, ": ".join([*words, repr(printable(sample[:WORDS]))])
    values = np.asarray(sample)
    if values.ndim == 2:
        values = values[None]
    if values.ndim == 3 and values.shape[0] in (1, 3):
        return _stretched(values.astype(np.float64)), ": ".join(words)
    if values.ndim == 1 and values.size:
        more = " ..." if values.size > NUMBERS else ""
        words.append(" ".join(f"{number:g}" for number in values[:NUMBERS].tolist()) + more)
    return None, ": ".join(words)


def data_uri(image: NDArray[np.uint8]) -> str:
    """An image [height, width, 3] as the data URI of a PNG of at most THUMBNAIL pixels."""
    from PIL import Image

    small = Image.fromarray(image)
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    small.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _stretched(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """[channels, height, width] of any range as [height, width, 3] from 0 to 255."""
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    pixels = np.round(255 * scaled).astype(np.uint8).transpose(1, 2, 0)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels

"""Sources of images and text, split, normalised and read in seeded batches.

In: a source such as `npz:PREFIX` or `text:FILE`.
Out: batches of inputs and labels.
May import: errors, system, forward.
"""

from ela_probe.data.images import ImageData
from ela_probe.data.opening import AnySpec, Data, data_from_spec, open_data
from ela_probe.data.spec import Augmentation, DataSpec
from ela_probe.data.text import TextData, TextSpec

__all__ = [
    "AnySpec",
    "Augmentation",
    "Data",
    "DataSpec",
    "ImageData",
    "TextData",
    "TextSpec",
    "data_from_spec",
    "open_data",
]

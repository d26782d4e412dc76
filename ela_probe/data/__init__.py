"""Where images and text come from, how they are split, prepared and batched.

In: a source such as `npz:PREFIX`. Out: seeded batches.
May import: errors, forward, system.
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

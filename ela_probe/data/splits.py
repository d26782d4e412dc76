"""Splits: the images of one source, as every reader returns them."""

from collections.abc import Collection
from dataclasses import dataclass

from ela_probe.data.image_stores import Images
from ela_probe.data.spec import Augmentation


@dataclass(frozen=True)
class Splits:
    """The images of a source, split.

    Args:
        train, test: training and test images.
        classes: names in the order of the labels.
        augment: augmentation used where the user names none.
        val: validation images; None where the source has no validation split.
        normalisation: mean and standard deviation per channel, where they are fixed; None where
            they are to be measured.
    """

    train: Images
    test: Images
    classes: tuple[str, ...]
    augment: Augmentation
    val: Images | None = None
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None


def held_out(found: Collection[str]) -> tuple[str, str | None]:
    """The names of the test split and of the validation split, given the splits of a source.

    "val" is the test split where there is no "test".
    """
    if "test" not in found:
        return "val", None
    return "test", "val" if "val" in found else None


def first_difference(ours: tuple[str, ...], theirs: tuple[str, ...]) -> str:
    """Where two lists of class names differ, in words."""
    for names, others, which in ((ours, theirs, "first"), (theirs, ours, "second")):
        only = [repr(name) for name in names if name not in others]
        if only and len(names) > len(others):
            return f"only the {which} has {', '.join(only[:5])}{' and others' * (len(only) > 5)}"
    for label, (our, their) in enumerate(zip(ours, theirs, strict=False)):
        if our != their:
            return f"class {label} is {our!r} in one and {their!r} in the other"
    return f"{len(ours)} in one and {len(theirs)} in the other"

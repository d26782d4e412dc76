"""Opening data, of images or of text, by its source or by the spec that a checkpoint carries."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Discriminator, Tag

from ela_probe.data.images import ImageData, open_images
from ela_probe.data.spec import Augmentation, DataSpec
from ela_probe.data.text import TextData, TextSpec, open_text
from ela_probe.errors import DataError

Data = ImageData | TextData


def _task(spec: Any) -> str:
    source = spec.get("source") if isinstance(spec, dict) else getattr(spec, "source", None)
    return "text" if str(source).startswith("text:") else "images"


AnySpec = Annotated[
    Annotated[DataSpec, Tag("images")] | Annotated[TextSpec, Tag("text")], Discriminator(_task)
]
"""A spec of either kind, told apart by its source, for pydantic models that carry one."""


def open_data(
    source: str,
    *,
    root: str | Path | None = None,
    download: bool = False,
    limit: int | None = None,
    val_fraction: float | None = None,
    seed: int = 0,
    image_size: int | None = None,
    augment: Augmentation | None = None,
    context: int | None = None,
) -> Data:
    """Open a source: `text:FILE` (see `open_text`) or images (see `open_images`).

    Args:
        val_fraction: share set aside for validation: of the training images 0.1, of a text 0.05
            when None.
        image_size, augment: of images only. context: tokens a sequence, of text only.
        The others as in `open_images` and `open_text`.

    Raises:
        DataError: as these two do, or an option is not for this source.
    """
    text = _task({"source": source}) == "text"
    foreign = {"image_size": image_size, "augment": augment} if text else {"context": context}
    for name, value in foreign.items():
        if value is not None:
            raise DataError(f"{source} takes no {name}={value}; leave it out")
    if text:
        return open_text(source, limit=limit, val_fraction=val_fraction, seed=seed, context=context)
    return open_images(
        source,
        root=root,
        download=download,
        limit=limit,
        val_fraction=0.1 if val_fraction is None else val_fraction,
        seed=seed,
        image_size=image_size,
        augment=augment,
    )


def data_from_spec(spec: DataSpec | TextSpec, *, download: bool = False) -> Data:
    """Open again what a checkpoint was trained on. Raises DataError when it is not there."""
    if isinstance(spec, TextSpec):
        return TextData(spec)
    return ImageData.from_spec(spec, download=download)

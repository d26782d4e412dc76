"""Opening images or text, from a source's name or from the spec in a checkpoint."""

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
"""A DataSpec or a TextSpec, for pydantic models; the source determines which of the two."""


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
    tokenizer: Path | None = None,
) -> Data:
    """Open a source: `text:FILE` (see `open_text`) or images (see `open_images`).

    Args:
        val_fraction: share for validation; when None, 0.1 of the training images or 0.05 of a
            text.
        image_size, augment: for images only.
        context: tokens in a window, for text only.
        tokenizer: the directory of the tokenizer of a text; None: the tokens are bytes.
        The other arguments are those of `open_images` and `open_text`.

    Raises:
        DataError: as in `open_images` and `open_text`, or an argument doesn't apply to the source.
    """
    is_text = _task({"source": source}) == "text"
    others = {"image_size": image_size, "augment": augment} if is_text else {"context": context}
    for name, value in others.items():
        if value is not None:
            raise DataError(f"{name}={value} doesn't apply to {source}; leave it out")
    if is_text:
        return open_text(
            source,
            limit=limit,
            val_fraction=val_fraction,
            seed=seed,
            context=context,
            tokenizer=tokenizer,
        )
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


def data_from_spec(
    spec: DataSpec | TextSpec, *, download: bool = False, tokenizer: Path | None = None
) -> Data:
    """Open the data that a checkpoint was trained on. Raises DataError when it is missing.

    tokenizer: as `open_data` takes it.
    """
    if isinstance(spec, TextSpec):
        return TextData(spec, tokenizer=tokenizer)
    return ImageData.from_spec(spec, download=download)

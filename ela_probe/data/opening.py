"""Opening a source of data, from its name or from the spec in a checkpoint."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag

from ela_probe.data.audio import AudioData, AudioSpec, open_audio
from ela_probe.data.detection import DetectionData, DetectionSpec, open_detection
from ela_probe.data.images import ImageData, open_images
from ela_probe.data.source_names import Task, task_of
from ela_probe.data.spec import Augmentation, DataSpec
from ela_probe.data.text import TextData, TextSpec, open_text
from ela_probe.errors import DataError

Data = ImageData | TextData | DetectionData | AudioData


def _task(spec: Any) -> Task:
    source = spec.get("source") if isinstance(spec, dict) else getattr(spec, "source", None)
    return task_of(str(source))


AnySpec = Annotated[
    Annotated[DataSpec, Tag("images")]
    | Annotated[TextSpec, Tag("tokens")]
    | Annotated[DetectionSpec, Tag("detection")]
    | Annotated[AudioSpec, Tag("audio")],
    Discriminator(_task),
]
"""The spec of any data, for pydantic models; the source determines which."""

# The options of `open_data` that apply to some sources only.
OPTIONS: dict[Task, tuple[str, ...]] = {
    "images": ("image_size", "augment"),
    "tokens": ("context",),
    "detection": ("image_size", "augment", "skip_invalid"),
    "audio": (),
}


def open_data(
    source: str,
    *,
    root: str | Path | None = None,
    download: bool = False,
    limit: int | None = None,
    val_fraction: float | None = None,
    seed: int = 0,
    image_size: int | None = None,
    augment: Augmentation | Literal["flip"] | None = None,
    context: int | None = None,
    skip_invalid: bool | None = None,
    directory: Path | None = None,
) -> Data:
    """Open a source: `text:FILE`, `coco:...`, `audio:PREFIX` or images.

    See `open_text`, `open_detection`, `open_audio` and `open_images`.

    Args:
        val_fraction: share for validation; when None, 0.1 of the training images or 0.05 of a
            text; see `open_detection` for annotated images.
        image_size, augment: for images only.
        context: tokens in a window, for text only.
        skip_invalid: for annotated images only.
        directory: of a model of transformers, whose tokenizer reads a text and whose feature
            extractor reads sounds; None: the tokens of a text are bytes, and sounds are refused.
        The other arguments are those of these functions.

    Raises:
        DataError: as in these functions, or an argument doesn't apply to the source.
    """
    task = task_of(source)
    given = {
        "image_size": image_size,
        "augment": augment,
        "context": context,
        "skip_invalid": skip_invalid or None,
    }
    for name, value in given.items():
        if value is not None and name not in OPTIONS[task]:
            raise DataError(f"{name}={value} doesn't apply to {source}; leave it out")
    if task == "detection":
        return open_detection(
            source,
            limit=limit,
            val_fraction=val_fraction,
            seed=seed,
            image_size=image_size,
            augment=augment,
            skip_invalid=bool(skip_invalid),
        )
    if task == "tokens":
        return open_text(
            source,
            limit=limit,
            val_fraction=val_fraction,
            seed=seed,
            context=context,
            tokenizer=directory,
        )
    if task == "audio":
        return open_audio(
            source, directory=directory, limit=limit, val_fraction=val_fraction, seed=seed
        )
    return open_images(
        source,
        root=root,
        download=download,
        limit=limit,
        val_fraction=0.1 if val_fraction is None else val_fraction,
        seed=seed,
        image_size=image_size,
        augment=augment,  # type: ignore[arg-type]
    )


def data_from_spec(
    spec: DataSpec | TextSpec | DetectionSpec | AudioSpec,
    *,
    download: bool = False,
    directory: Path | None = None,
) -> Data:
    """Open the data that a checkpoint was trained on. Raises DataError when it is missing.

    directory: as `open_data` takes it.
    """
    if isinstance(spec, DetectionSpec):
        return DetectionData(spec)
    if isinstance(spec, TextSpec):
        return TextData(spec, tokenizer=directory)
    if isinstance(spec, AudioSpec):
        return AudioData(spec, directory=directory)
    return ImageData.from_spec(spec, download=download)

"""Annotations in COCO's format: read, and checked before anything else starts.

The format is that of https://cocodataset.org/#format-data: boxes are x, y, width, height in pixels.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ela_probe.data.image_stores import DECODED_AT_OPENING
from ela_probe.errors import DataError
from ela_probe.system.messages import first_line

LISTED = 5  # broken annotations in a message
OUTSIDE = 1.0  # pixels that a box may lie outside its image: rounding
Document = dict[str, Any]


@dataclass(frozen=True)
class Annotations:
    """The valid part of a file of annotations.

    document: with `images`, `annotations` and `categories`. problems: of what was left out, a line
    for each. annotations, images: how many of them were left out.
    """

    document: Document
    problems: tuple[str, ...] = ()
    annotations: int = 0
    images: int = 0


def read_annotations(
    images: Path, file: Path, *, categories: Mapping[int, str] | None = None
) -> Annotations:
    """Read a file, and find what in it can't be trained on.

    Found are: images that are missing, broken, or of another size than the file says; boxes outside
    their image or without area; unknown images and categories; polygons of fewer than three points.
    Up to 10,000 images are decoded, of others only the headers are read.

    Args:
        images: the folder of the images. file: the annotations.
        categories: the names of the known categories by id; None: those of the file.

    Raises:
        DataError: the file can't be read, or is no such file.
    """
    document = _document(file)
    if categories is None:
        categories = category_names(document, file)
    problems, bad_images = [], set()
    decoded = len(document["images"]) <= DECODED_AT_OPENING
    by_id: dict[Any, Mapping[str, Any]] = {}
    for image in document["images"]:
        problem = _problem_of_image(images, image, decode=decoded)
        if problem is None and image["id"] in by_id:
            problem = "another image has this id"
        if problem is None:
            by_id[image["id"]] = image
        else:
            bad_images.add(id(image))
            problems.append(f"image {_named(image.get('id'), image.get('file_name'))}: {problem}")
    known_ids = {image.get("id") for image in document["images"]}
    kept, seen = [], set()
    dropped = 0
    for annotation in document["annotations"]:
        of = annotation.get("image_id") if isinstance(annotation, dict) else None
        if of in known_ids and of not in by_id:
            continue  # it goes with its image
        problem = _problem_of_annotation(annotation, by_id, categories)
        if problem is None and annotation["id"] in seen:
            problem = "another annotation has this id"
        if problem is None:
            seen.add(annotation["id"])
            kept.append(annotation)
            continue
        dropped += 1
        identity = annotation.get("id") if isinstance(annotation, dict) else None
        name = by_id[of].get("file_name") if of in by_id else None
        problems.append(f"annotation {_named(identity, name)}: {problem}")
    valid = {
        "images": [image for image in document["images"] if id(image) not in bad_images],
        "annotations": kept,
        "categories": document["categories"],
    }
    return Annotations(valid, tuple(problems), dropped, len(bad_images))


def refuse(found: Annotations, file: Path) -> None:
    """Raise DataError where anything is left out; the first few are named by id and file."""
    if found.problems:
        count = len(found.problems)
        more = f"; and {count - LISTED} more" if count > LISTED else ""
        raise DataError(
            f"{file} has {count} broken entr{'y' if count == 1 else 'ies'}: "
            f"{'; '.join(found.problems[:LISTED])}{more}. Correct the file, or leave "
            f"{'it' if count == 1 else 'them'} out with --skip-invalid"
        )


def category_names(document: Document, file: Path) -> dict[int, str]:
    """The names of the categories by id, in the order of the ids. Raises DataError."""
    found: dict[int, str] = {}
    for category in document["categories"]:
        number = category.get("id") if isinstance(category, dict) else None
        name = category.get("name") if isinstance(category, dict) else None
        if not isinstance(number, int) or not isinstance(name, str) or number in found:
            raise DataError(
                f"{file}: got the category {category!r}, expected an id (integer) that no other "
                "category has, and a name"
            )
        found[number] = name
    if not found:
        raise DataError(f"{file} has no categories; expected at least one")
    return dict(sorted(found.items()))


def _document(file: Path) -> Document:
    try:
        document = json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(
            f"cannot read the annotations {file} ({error.strerror or first_line(error)}); expected "
            "a JSON file in COCO's format"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{file} is no JSON ({first_line(error)}); expected annotations in COCO's format"
        ) from error
    lists = ("images", "annotations", "categories")
    missing = [
        name
        for name in lists
        if not isinstance(document, dict) or not isinstance(document.get(name), list)
    ]
    if missing or not all(isinstance(image, dict) for image in document["images"]):
        raise DataError(
            f"{file} has no list {', '.join(missing) or 'of images that are objects'}; expected "
            "annotations in COCO's format, with the lists images, annotations and categories"
        )
    return dict(document)


def _named(number: Any, file: Any) -> str:
    return f"{number}" if file is None else f"{number} ({file})"


def _problem_of_image(folder: Path, image: Mapping[str, Any], *, decode: bool) -> str | None:
    name, size = image.get("file_name"), (image.get("width"), image.get("height"))
    if not isinstance(image.get("id"), int) or not isinstance(name, str):
        return "expected an id (integer) and a file_name"
    path = folder / name
    if not path.is_file():
        return f"{path} does not exist"
    try:
        with Image.open(path) as opened:
            if decode:
                opened.load()
            found = opened.size
    except Exception as error:  # Pillow raises many types
        return f"{path} is no readable image ({first_line(error)})"
    if found != size:
        return (
            f"{path} is {found[0]} x {found[1]} pixels, the annotations say {size[0]} x {size[1]}"
        )
    return None


def _problem_of_annotation(
    annotation: Any, images: Mapping[Any, Mapping[str, Any]], categories: Mapping[int, str]
) -> str | None:
    if not isinstance(annotation, dict) or not isinstance(annotation.get("id"), int):
        return "expected an object with an id (integer)"
    image = images.get(annotation.get("image_id"))
    if image is None:
        return f"image_id {annotation.get('image_id')!r} is no image of the file"
    if annotation.get("category_id") not in categories:
        return f"category_id {annotation.get('category_id')!r} is no category of the file"
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        return f"bbox is {box!r}, expected four numbers: x, y, width, height"
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return f"bbox {box} has no area"
    if (
        min(x, y) < -OUTSIDE
        or x + width > image["width"] + OUTSIDE
        or y + height > image["height"] + OUTSIDE
    ):
        return f"bbox {box} lies outside the image of {image['width']} x {image['height']} pixels"
    area = annotation.get("area", width * height)
    if not _is_number(area) or area <= 0:
        return f"area is {area!r}, expected a number above 0"
    return next(_problems_of_mask(annotation.get("segmentation"), image), None)


def _problems_of_mask(mask: Any, image: Mapping[str, Any]) -> Iterator[str]:
    if mask is None:
        return
    if isinstance(mask, dict):
        size = [image["height"], image["width"]]
        if not isinstance(mask.get("counts"), list | str) or mask.get("size") != size:
            yield f"its run-length mask has size {mask.get('size')}, expected {size} and counts"
        return
    if not isinstance(mask, list) or not mask:
        yield f"segmentation is {type(mask).__name__}, expected polygons or a run-length mask"
        return
    for polygon in mask:
        if not isinstance(polygon, list) or not all(_is_number(value) for value in polygon):
            yield "a polygon is no list of numbers"
        elif len(polygon) < 6 or len(polygon) % 2:
            yield (
                f"a polygon has {len(polygon)} numbers, expected x and y of three points or more"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def has_masks(document: Document) -> bool:
    """Whether there are annotations, and all of them have a mask."""
    annotations: Sequence[Mapping[str, Any]] = document["annotations"]
    return bool(annotations) and all(a.get("segmentation") is not None for a in annotations)

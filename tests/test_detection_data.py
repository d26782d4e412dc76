"""Annotated images: read as stored, mirrored with their boxes, refused where they are broken."""

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ela_probe.data.annotations import read_annotations
from ela_probe.data.detection import DetectionData
from ela_probe.data.opening import AnySpec, data_from_spec, open_data
from ela_probe.errors import DataError, DataWarning
from tests.support.detection import coco_folder, polygon_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coco_folder(tmp_path_factory.mktemp("coco"), images=6)


def opened(folder: Path, **options: Any) -> DetectionData:
    data = open_data(f"coco:{folder / 'images'},{folder / 'objects.json'}", **options)
    assert isinstance(data, DetectionData)
    return data


def test_a_sample_holds_the_pixels_boxes_and_masks_of_the_file(folder: Path) -> None:
    data = opened(folder, val_fraction=0.0)
    document = json.loads((folder / "objects.json").read_text())
    image, target = data.dataset("train")[1]
    entry = document["images"][1]
    stored = Image.open(folder / "images" / entry["file_name"])
    assert image.shape == (3, stored.height, stored.width)
    assert image[:, 3, 5].mul(255).round().int().tolist() == list(stored.getpixel((5, 3)))  # type: ignore[arg-type]
    own = [a for a in document["annotations"] if a["image_id"] == entry["id"]]
    x, y, width, height = own[0]["bbox"]
    assert target["boxes"][0].tolist() == [x, y, x + width, y + height]
    assert target["masks"][0].sum() == width * height
    assert target["masks"][0, y : y + height, x : x + width].all()


def test_categories_are_numbered_by_their_ids_in_order(folder: Path) -> None:
    """The file has 7 (square) and 3 (bar)."""
    data = opened(folder)
    assert data.spec.classes == ("bar", "square")
    assert data.spec.num_classes == 3
    labels = {int(label) for _, target in data.dataset("train") for label in target["labels"]}
    assert labels == {1, 2}


def test_images_without_objects_and_crowds_are_kept(folder: Path) -> None:
    targets = [target for _, target in opened(folder, val_fraction=0.0).dataset("train")]
    assert [len(target["labels"]) for target in targets].count(0) == 1
    empty = next(target for target in targets if not len(target["labels"]))
    assert empty["boxes"].shape == (0, 4)
    assert empty["masks"].shape[0] == 0
    assert sum(int(target["iscrowd"].sum()) for target in targets) == 1


def test_a_batch_pads_below_and_right(folder: Path) -> None:
    data = opened(folder, val_fraction=0.0)
    inputs, targets = next(iter(data.loader("train", batch_size=6)))
    assert len(targets) == 6
    assert inputs["images"].shape[-2:] == tuple(inputs["sizes"].amax(0).tolist())
    for number, (height, width) in enumerate(inputs["sizes"].tolist()):
        image, _ = data.dataset("train")[number]
        assert torch.equal(inputs["images"][number, :, :height, :width], image)
        assert not inputs["images"][number, :, height:].any()
        assert not inputs["images"][number, :, :, width:].any()


def test_mirroring_moves_boxes_and_masks_with_the_pixels(folder: Path) -> None:
    data = opened(folder, val_fraction=0.0)
    plain = next(iter(data.loader("train", batch_size=6)))
    loader = data.loader("train", batch_size=6, augment=True, seed=3)
    inputs, targets = next(iter(loader))
    again = next(iter(loader))
    assert torch.equal(inputs["images"], again[0]["images"])
    mirrored = 0
    for number, (_, width) in enumerate(inputs["sizes"].tolist()):
        before, after = (p[0]["images"][number, :, :, :width] for p in (plain, (inputs, targets)))
        boxes, moved = plain[1][number]["boxes"], targets[number]["boxes"]
        if torch.equal(after, before):
            assert torch.equal(boxes, moved)
            continue
        mirrored += 1
        assert torch.equal(after, before.flip(-1))
        assert torch.equal(moved[:, [0, 2]], width - boxes[:, [2, 0]])
        assert torch.equal(targets[number]["masks"], plain[1][number]["masks"].flip(-1))
    assert 0 < mirrored < 6


def test_the_splits_of_one_pair_share_no_image_and_miss_none(folder: Path) -> None:
    data = opened(folder, val_fraction=0.4)
    train, val = (set(data.dataset(split).ids) for split in ("train", "val"))
    assert (len(train), len(val)) == (4, 2)
    assert not train & val
    assert set(data.dataset("test").ids) == val
    rest = data.dataset("train", limit=1).ids + data.dataset("train", after=1).ids
    assert set(rest) == train


def test_a_second_pair_is_validation_and_test(folder: Path) -> None:
    pair = f"{folder / 'images'},{folder / 'objects.json'}"
    data = open_data(f"coco:{pair},{pair}", limit=3)
    assert [data.size(split) for split in ("train", "val", "test")] == [3, 6, 6]


def test_a_spec_opens_the_same_data_again(folder: Path) -> None:
    from pydantic import TypeAdapter

    spec = opened(folder, image_size=96, limit=4).spec
    read = TypeAdapter(AnySpec).validate_json(spec.model_dump_json())
    assert read == spec
    assert data_from_spec(spec).size("train") == 4


def change(document: Any, **fields: Any) -> None:
    document["annotations"][0].update(fields)


BROKEN = {
    "a missing file": (
        lambda d: d["images"][0].update(file_name="none.png"),
        r"image 10 \(none.png\): .*none.png does not exist",
    ),
    "another size": (
        lambda d: d["images"][0].update(width=5),
        r"image 10 \(0.png\): .* pixels, the annotations say 5 x",
    ),
    "a box outside": (
        lambda d: change(d, bbox=[60, 2, 30, 5]),
        r"annotation 1 \(0.png\): bbox \[60, 2, 30, 5\] lies outside the image of 72 x 64 pixels",
    ),
    "a box without area": (
        lambda d: change(d, bbox=[6, 2, 0, 5]),
        r"annotation 1 \(0.png\): bbox .* has no area",
    ),
    "no area": (lambda d: change(d, area=0), r"annotation 1 \(0.png\): area is 0"),
    "an unknown category": (
        lambda d: change(d, category_id=99),
        r"annotation 1 \(0.png\): category_id 99 is no category",
    ),
    "an unknown image": (
        lambda d: change(d, image_id=99),
        r"annotation 1: image_id 99 is no image of the file",
    ),
    "two points": (
        lambda d: change(d, segmentation=[[1, 1, 5, 5]]),
        r"annotation 1 \(0.png\): a polygon has 4 numbers, expected x and y of three points",
    ),
    "half a box": (lambda d: change(d, bbox=[1, 2]), r"annotation 1 \(0.png\): bbox is \[1, 2\]"),
    "a NaN": (
        lambda d: change(d, bbox=[1, 2, float("nan"), 3]),
        r"annotation 1 \(0.png\): bbox is \[1, 2, nan, 3\]",
    ),
    "an id twice": (
        lambda d: d["annotations"].append(copy.deepcopy(d["annotations"][0])),
        r"annotation 1 \(0.png\): another annotation has this id",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_is_named_or_left_out(what: str, folder: Path) -> None:
    edit, message = BROKEN[what]
    document = json.loads((folder / "objects.json").read_text())
    entries = len(document["annotations"])
    edit(document)
    file = folder / f"{what}.json"
    file.write_text(json.dumps(document))
    source = f"coco:{folder / 'images'},{file}"
    with pytest.raises(DataError, match=rf"(?s)has 1 broken entry: {message}.*--skip-invalid"):
        open_data(source)
    with pytest.warns(DataWarning, match="left out [01] annotations and [01] images"):
        data = open_data(source, skip_invalid=True, val_fraction=0.0)
    assert isinstance(data, DetectionData)
    found = data.dataset("train")
    kept = sum(len(found[number][1]["labels"]) for number in range(len(found)))
    own = sum(a["image_id"] == document["images"][0]["id"] for a in document["annotations"])
    lost = own if len(found) < 6 else 0 if what == "an id twice" else 1
    assert kept == entries - lost


def test_an_image_that_is_none_is_named(folder: Path, tmp_path: Path) -> None:
    coco_folder(tmp_path, images=2)
    (tmp_path / "images" / "1.png").write_text("no image")
    found = read_annotations(tmp_path / "images", tmp_path / "objects.json")
    assert len(found.problems) == 1
    assert "image 11 (1.png)" in found.problems[0]
    assert "no readable image" in found.problems[0]
    assert found.images == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "has no list images"),
        ('{"images": [], "annotations": []}', "has no list categories"),
        ('{"images": [], "annotations": [], "categories": []}', "has no categories"),
        ('{"images": [], "annotations": [], "categories": [{"id": "a"}]}', "got the category"),
    ],
)
def test_a_file_of_another_kind_is_refused(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "objects.json"
    file.write_text(content)
    with pytest.raises(DataError, match=message):
        open_data(f"coco:{tmp_path},{file}")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("coco:{0}/images", "names 1 paths"),
        ("coco:{0}/none,{0}/objects.json", "none does not exist"),
        ("coco:{0}/images,{0}/none.json", "none.json does not exist"),
        ("coco:", "has no path; write coco:IMAGES,ANNOTATIONS.json"),
    ],
)
def test_a_source_without_its_files_is_refused(source: str, message: str, folder: Path) -> None:
    with pytest.raises(DataError, match=message):
        open_data(source.format(folder))


def test_options_of_other_data_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="context=8 doesn't apply"):
        opened(folder, context=8)
    with pytest.raises(DataError, match="skip_invalid=True doesn't apply to digits"):
        open_data("digits", skip_invalid=True)


def test_objects_without_masks_are_noticed(folder: Path, tmp_path: Path) -> None:
    document = json.loads((folder / "objects.json").read_text())
    assert opened(folder).spec.masks
    del document["annotations"][0]["segmentation"]
    file = tmp_path / "objects.json"
    file.write_text(json.dumps(document))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = open_data(f"coco:{folder / 'images'},{file}")
    assert isinstance(data, DetectionData)
    assert not data.spec.masks
    assert "masks" not in data.dataset("train")[0][1]


def test_a_polygon_of_a_rectangle_covers_its_pixels() -> None:
    assert polygon_of(1, 2, 3, 4) == [[1, 2, 4, 2, 4, 6, 1, 6]]


def test_without_a_size_batches_of_detection_are_small(folder: Path) -> None:
    from ela_probe.pipeline.inputs import batch_size_for

    data = opened(folder)
    assert batch_size_for(data, None, 256) == 16
    assert batch_size_for(data, 40, 256) == 40
    assert batch_size_for(None, None, 256) == 256

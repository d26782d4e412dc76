"""Files that are broken in every way end in one DataError that names the file."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ela_probe_cli import main
from PIL import Image

from ela_probe.data.opening import open_data
from ela_probe.errors import DataError

RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8), np.arange(12) % 3


def write_pair(root: Path) -> str:
    for split in ("train", "test"):
        np.savez(root / f"set-{split}.npz", images=IMAGES, labels=LABELS)
    return f"npz:{root / 'set'}"


def write_one(root: Path) -> str:
    arrays: dict[str, Any] = {}
    for split in ("train", "val", "test"):
        arrays |= {f"{split}_images": IMAGES, f"{split}_labels": LABELS}
    np.savez(root / "set.npz", **arrays)
    return f"npz:{root / 'set.npz'}"


def write_folder(root: Path) -> str:
    for split in ("train", "val", "test"):
        for label in range(2):
            (root / "set" / split / str(label)).mkdir(parents=True)
            for i in range(3):
                image = Image.fromarray(np.tile(IMAGES[3 * label + i], (4, 4, 1)))
                image.save(root / "set" / split / str(label) / f"{i}.png")
    return f"folder:{root / 'set'}"


def write_text(root: Path) -> str:
    (root / "set.txt").write_bytes(b"all work and no play. " * 500)
    return f"text:{root / 'set.txt'}"


def write_fashion(root: Path) -> str:
    for stem in ("train", "t10k"):
        pixels = RNG.integers(0, 256, (20, 28, 28), dtype=np.uint8)
        labels = (np.arange(20) % 10).astype(np.uint8)
        for name, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
            content = gzip.compress(header + array.tobytes())
            (root / f"{stem}-{name}-ubyte.gz").write_bytes(content)
    return "fashion-mnist"


FILES = {
    "pair": (write_pair, "set-test.npz"),
    "one": (write_one, "set.npz"),
    "folder": (write_folder, "set/test/1/2.png"),
    "text": (write_text, "set.txt"),
    "fashion": (write_fashion, "t10k-images-idx3-ubyte.gz"),
}


def remove(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def overwrite(path: Path) -> None:
    path.write_bytes(b"\x80\x04something else entirely" * 500)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_unreadable(path: Path) -> None:
    """Not by permissions: root may read everything."""
    path.unlink()
    path.symlink_to(path)


def damage_the_middle(path: Path) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 50] = bytes(50)
    path.write_bytes(content)


FINE = {  # what is damaged so that it is a good file still, or another data set
    ("folder", remove),
    ("folder", replace_by_folder),
    ("text", truncate),
    ("text", overwrite),
    ("text", damage_the_middle),
}
DAMAGES = (
    remove, empty, truncate, overwrite, replace_by_folder, make_unreadable, damage_the_middle
)  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("kind", FILES)
def test_a_broken_file_is_named_at_opening(
    tmp_path: Path, kind: str, damage: Callable[[Path], None]
) -> None:
    write, name = FILES[kind]
    source = write(tmp_path)
    open_data(source, root=tmp_path)
    damage(tmp_path / name)
    if (kind, damage) in FINE:
        open_data(source, root=tmp_path)
        return
    with pytest.raises(DataError) as caught:
        open_data(source, root=tmp_path)
    message = str(caught.value)
    assert Path(name).name.removesuffix(".gz") in message
    assert "\n" not in message
    assert "; " in message  # what to do


@pytest.mark.parametrize("kind", FILES)
def test_a_file_where_a_folder_belongs(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("a file")
    for source in (f"folder:{tmp_path / 'file'}", f"imagenet:{tmp_path / 'file'}"):
        with pytest.raises(DataError, match=r"/file"):
            open_data(source)
    for source in ("fashion-mnist", "cifar10"):
        with pytest.raises(DataError, match=rf"{source} is not in .*/file"):
            open_data(source, root=tmp_path / "file")


def test_a_folder_where_a_file_belongs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is a folder, expected \.npz files; write npz:"):
        open_data(f"npz:{tmp_path}")
    with pytest.raises(DataError, match=r"it is a folder.*write folder:"):
        open_data(f"text:{tmp_path}")


def test_a_split_folder_that_is_a_file(tmp_path: Path) -> None:
    source = write_folder(tmp_path)
    (tmp_path / "set" / "train").rename(tmp_path / "elsewhere")
    (tmp_path / "set" / "train").write_text("a file")
    with pytest.raises(DataError, match="has no folder train/; expected"):
        open_data(source)


def test_images_without_class_folders(tmp_path: Path) -> None:
    source = write_folder(tmp_path)
    for i in range(2):
        folder = tmp_path / "set" / "train" / str(i)
        for file in folder.iterdir():
            file.rename(tmp_path / "set" / "train" / f"{i}{file.name}")
        folder.rmdir()
    with pytest.raises(DataError, match="train has images, but no class folders; expected"):
        open_data(source)


def test_a_text_is_not_an_npz_file(tmp_path: Path) -> None:
    write_text(tmp_path)
    with pytest.raises(DataError, match=r"set\.txt can't be read as an \.npz file") as caught:
        open_data(f"npz:{tmp_path / 'set.txt'}")
    assert "pickle" not in str(caught.value)


def test_the_folder_of_cifar_itself_as_data_root(tmp_path: Path) -> None:
    root = tmp_path / "cifar-10-batches-py"
    root.mkdir()
    with pytest.raises(DataError, match=f"point --data-root at {tmp_path}$"):
        open_data("cifar10", root=root)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": IMAGES, "y": LABELS}, "contains x, y; expected train_images, train_labels"),
        ({}, "contains nothing; expected train_images"),
        ({"train_images": IMAGES, "test_images": IMAGES}, "no train_labels and no test_labels"),
        ({"images": IMAGES, "labels": LABELS}, "contains images, labels; expected train_images"),
    ],
)
def test_wrong_array_names(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(DataError, match=message):
        open_data(f"npz:{tmp_path / 'set'}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_images": IMAGES[:5]}, "5 images but 12 labels"),
        ({"test_labels": LABELS[:5]}, "12 images but 5 labels"),
        ({"test_images": IMAGES[..., 0]}, r"channels differ: 3 in train_images .*, 1 in test"),
        ({"test_images": IMAGES[:0]}, "test_images in .* are empty"),
        ({"train_images": IMAGES.transpose(0, 3, 1, 2)}, "channels first; .*transpose"),
        ({"train_images": IMAGES / 255}, "image types differ: float64 in train_images"),
        ({"train_labels": LABELS.astype(str)}, "train_labels in .* expected integers"),
        ({"test_labels": np.array(3)}, r"test_labels in .* have shape \(\)"),
        ({"val_labels": LABELS - 100}, "label -100 .* val_labels"),
        ({"test_labels": np.eye(12)[:, ::-1] + np.eye(12)}, "row 0 is not one-hot"),
        ({"classes": np.array(["a", "b"])}, "label 2 .* is beyond the 2 classes"),
        ({"classes": np.array([b"a", b"\xff", b"c"])}, "class name .*xff.* not valid UTF-8"),
    ],
)
def test_wrong_arrays(tmp_path: Path, changes: dict[str, np.ndarray], message: str) -> None:
    write_one(tmp_path)
    with np.load(tmp_path / "set.npz") as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(tmp_path / "set.npz", **(arrays | changes))
    with pytest.raises(DataError, match=message) as caught:
        open_data(f"npz:{tmp_path / 'set'}")
    assert "\n" not in str(caught.value)


def test_a_broken_picture_ends_training_before_it_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_folder(tmp_path)
    truncate(tmp_path / "set/val/0/1.png")
    words = ["train", "--model", "resnet8", "--data", source, "-o", str(tmp_path / "run")]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "val/0/1.png is not a readable image" in error
    assert not (tmp_path / "run").exists()


def test_of_many_pictures_only_the_headers_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_folder(tmp_path)
    path = tmp_path / "set/test/1/2.png"
    monkeypatch.setattr("ela_probe.data.image_stores.DECODED_AT_OPENING", 0)
    truncate(path)
    data = open_data(source)
    with pytest.raises(DataError, match="2.png is not a readable image"):
        data.dataset("test")[len(data.dataset("test")) - 1]
    overwrite(path)
    with pytest.raises(DataError, match="2.png is not a readable image"):
        open_data(source)


def test_reading_later_still_names_the_file(tmp_path: Path) -> None:
    data = open_data(write_folder(tmp_path))
    again = type(data).from_spec(data.spec)  # type: ignore[arg-type]
    truncate(tmp_path / "set/test/1/2.png")
    with pytest.raises(DataError, match="2.png is not a readable image"):
        torch.cat([images for images, _ in again.loader("test")])

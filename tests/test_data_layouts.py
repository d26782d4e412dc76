"""Layouts of data as people have them: MedMNIST's npz, valid/, hidden files, odd names, hints."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ela_probe_cli import main
from PIL import Image

from ela_probe.data.images import ImageData
from ela_probe.data.opening import Data, open_data
from ela_probe.data.spec import DataSpec
from ela_probe.errors import DataError, DataWarning

COUNTS = {"train": 12, "val": 6, "test": 9}
RNG = np.random.default_rng(0)
ARRAYS = {
    split: (
        RNG.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8),
        (np.arange(count) % 3).astype(np.uint8),
    )
    for split, count in COUNTS.items()
}


def as_medmnist(**changes: Any) -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    for split, (images, labels) in ARRAYS.items():
        arrays |= {f"{split}_images": images, f"{split}_labels": labels[:, None]}
    return {name: array for name, array in (arrays | changes).items() if array is not None}


def read(data: Data, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 images (N, C, H, W) and labels (N,) of a split."""
    assert isinstance(data, ImageData)
    dataset = data.dataset(split)  # type: ignore[arg-type]
    return dataset.images.read(dataset.indices), dataset.labels


def assert_same(data: Data) -> None:
    """`data` has the images of ARRAYS in the right splits."""
    for split, (images, labels) in ARRAYS.items():
        found, classes = read(data, split)
        assert torch.equal(found, torch.from_numpy(images).permute(0, 3, 1, 2))
        assert classes.tolist() == labels.tolist()


@pytest.mark.parametrize("suffix", ["", ".npz"])
def test_one_file_of_medmnist(tmp_path: Path, suffix: str) -> None:
    np.savez(tmp_path / "pathmnist.npz", **as_medmnist())
    data = open_data(f"npz:{tmp_path / 'pathmnist'}{suffix}")
    assert_same(data)
    assert data.spec == DataSpec.model_validate_json(data.spec.model_dump_json())
    assert isinstance(data, ImageData)
    assert_same(ImageData.from_spec(data.spec))
    assert data.spec.classes == ("0", "1", "2")
    assert open_data(data.spec.source, val_fraction=0).size("val") == 0


def test_grey_images_have_one_channel(tmp_path: Path) -> None:
    grey = {f"{s}_images": images[..., 0] for s, (images, _) in ARRAYS.items()}
    np.savez(tmp_path / "a.npz", **as_medmnist(**grey))
    np.savez(tmp_path / "b.npz", **as_medmnist(**{k: v[..., None] for k, v in grey.items()}))
    for name in "ab":
        data = open_data(f"npz:{tmp_path / name}")
        assert data.spec.model_arguments() == {"num_classes": 3, "in_channels": 1}
        images, _ = read(data, "test")
        assert torch.equal(images[:, 0], torch.from_numpy(ARRAYS["test"][0][..., 0]))


def test_one_file_of_keras_and_a_file_for_each_split(tmp_path: Path) -> None:
    keras: dict[str, Any] = {}
    for split, (images, labels) in ARRAYS.items():
        keras |= {f"x_{split}": images, f"y_{split}": labels}
        np.savez_compressed(tmp_path / f"set-{split}.npz", images=images, labels=labels)
    np.savez(tmp_path / "keras.npz", **keras)
    assert_same(open_data(f"npz:{tmp_path / 'keras'}"))
    assert_same(open_data(f"npz:{tmp_path / 'set'}"))


def test_without_a_test_split_val_is_the_test_split(tmp_path: Path) -> None:
    for split in ("train", "val"):
        np.savez(tmp_path / f"set-{split}.npz", images=ARRAYS[split][0], labels=ARRAYS[split][1])
    changes = {"test_images": None, "test_labels": None}
    np.savez(tmp_path / "one.npz", **as_medmnist(**changes))
    for name in ("set", "one"):
        data = open_data(f"npz:{tmp_path / name}", val_fraction=0.25)
        assert [data.size(split) for split in ("train", "val", "test")] == [9, 3, 6]


def test_class_names_and_one_hot_labels_set_the_number_of_classes(tmp_path: Path) -> None:
    one_hot = {f"{s}_labels": np.eye(5)[labels] for s, (_, labels) in ARRAYS.items()}
    np.savez(tmp_path / "hot.npz", **as_medmnist(**one_hot))
    with pytest.warns(DataWarning, match=r"2 of the 5 classes .* no training image \(3, 4\)"):
        data = open_data(f"npz:{tmp_path / 'hot'}")
    assert data.spec.num_classes == 5
    assert_same(data)
    names = np.array([b"cat", b"dog", b"owl"])
    np.savez(tmp_path / "named.npz", **as_medmnist(classes=names))
    assert open_data(f"npz:{tmp_path / 'named'}").spec.classes == ("cat", "dog", "owl")


def test_labels_from_1_warn_of_an_empty_class(tmp_path: Path) -> None:
    from_1 = {f"{s}_labels": labels + 1 for s, (_, labels) in ARRAYS.items()}
    np.savez(tmp_path / "x.npz", **as_medmnist(**from_1))
    with pytest.warns(DataWarning, match=r"1 of the 4 classes .* \(0\); expected classes numbered"):
        open_data(f"npz:{tmp_path / 'x'}")


def test_uint8_images_are_not_copied_while_reading(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **as_medmnist())
    data = open_data(f"npz:{tmp_path / 'x'}")
    assert isinstance(data, ImageData)
    images = data.dataset("test").images.images  # type: ignore[attr-defined]
    assert images.stride() == (8 * 8 * 3, 1, 8 * 3, 3)  # the file's own order
    batch, _ = next(iter(data.loader("test")))
    assert batch.is_contiguous()


def write_folder(root: Path, splits: tuple[str, ...], classes: tuple[str, ...] = ("a", "b")) -> str:
    for split in splits:
        for label, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for i in range(4):
                pixels = RNG.integers(0, 256, (9, 9, 3), dtype=np.uint8)
                pixels[..., 0] = label
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return f"folder:{root}"


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_names_of_the_validation_folder(tmp_path: Path, name: str) -> None:
    alone = open_data(write_folder(tmp_path / "1", ("train", name)), val_fraction=0.25)
    assert [alone.size(s) for s in ("train", "val", "test")] == [6, 2, 8]
    both = open_data(write_folder(tmp_path / "2", ("train", name, "test")))
    assert [both.size(s) for s in ("train", "val", "test")] == [8, 8, 8]


def test_two_validation_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has both val/ and valid/; keep one"):
        open_data(write_folder(tmp_path, ("train", "val", "valid")))


@pytest.mark.parametrize("kind", ["folder", "imagenet"])
def test_hidden_files_and_folders_are_ignored(tmp_path: Path, kind: str) -> None:
    root = tmp_path / ".cache" / "set"  # a hidden parent doesn't matter
    write_folder(root, ("train", "val"))
    clean = open_data(f"{kind}:{root}", image_size=16)
    picture = root / "train" / "a" / "0.png"
    for hidden in (
        "train/.ipynb_checkpoints/0-checkpoint.png",
        "train/a/.ipynb_checkpoints/0-checkpoint.png",
        "val/.hidden/0.png",
        "val/__MACOSX/._0.png",
    ):
        (root / hidden).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, root / hidden)
    (root / "train" / "a" / "._0.png").write_bytes(b"\x00\x05\x16\x07")
    (root / "train" / "._a").write_bytes(b"\x00\x05\x16\x07")
    (root / "train" / "notes.txt").write_text("not a class")
    again = open_data(f"{kind}:{root}", image_size=16)
    assert again.spec == clean.spec
    for split in ("train", "test"):
        assert all(map(torch.equal, read(again, split), read(clean, split)))


def test_a_class_name_that_is_not_utf_8_is_refused_at_reading(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "set", ("train", "test"))
    for split in ("train", "test"):
        folder = os.fsencode(tmp_path / "set" / split)
        os.rename(folder + b"/b", folder + b"/caf\xe9")
    with pytest.raises(DataError, match=r"class name 'caf\\udce9' .* not valid UTF-8; rename"):
        open_data(source)
    os.rename(os.fsencode(tmp_path / "set"), os.fsencode(tmp_path) + b"/s\xe9t")
    with pytest.raises(DataError, match=r"path in .* is not valid UTF-8; rename"):
        open_data(f"folder:{os.fsdecode(os.fsencode(tmp_path) + bytes([47, 115, 0xE9, 116]))}")


def test_a_file_name_that_is_not_utf_8_is_escaped_in_the_error(tmp_path: Path) -> None:
    source = write_folder(tmp_path, ("train", "test"))
    path = os.fsencode(tmp_path / "test" / "b") + b"/caf\xe9.png"
    shutil.copy(os.fsencode(tmp_path / "test" / "b" / "0.png"), path)
    assert open_data(source).size("test") == 9
    Path(os.fsdecode(path)).write_bytes(b"broken")
    with pytest.raises(DataError, match=r"caf\\udce9\.png is not a readable image") as caught:
        open_data(source)
    str(caught.value).encode()


def test_an_empty_class_folder_warns(tmp_path: Path) -> None:
    source = write_folder(tmp_path, ("train", "test"))
    for split in ("train", "test"):
        (tmp_path / split / "c").mkdir()
    with pytest.warns(DataWarning, match=r"1 of the 3 classes .* no training image \(c\)"):
        data = open_data(source)
    assert data.spec.num_classes == 3


@pytest.fixture
def hints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with data of every kind."""
    write_folder(tmp_path / "pets", ("train", "test"))
    (tmp_path / "flat" / "cat").mkdir(parents=True)
    for split, (images, labels) in ARRAYS.items():
        np.savez(tmp_path / f"X-{split}.npz", images=images, labels=labels)
    np.savez(tmp_path / "one.npz", **as_medmnist())
    (tmp_path / "arrays").mkdir()
    shutil.copy(tmp_path / "one.npz", tmp_path / "arrays" / "one.npz")
    (tmp_path / "poem.txt").write_text("a poem")
    (tmp_path / "data.csv").write_text("1,2")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("X-train.npz", "is a file; write npz:X$"),
        ("X-test.npz", "is a file; write npz:X$"),
        ("X", "lacks its kind; write npz:X$"),
        ("one", "lacks its kind; write npz:one$"),
        ("one.npz", r"is a file; write npz:one\.npz$"),
        ("npz:X-train.npz", r"X-train\.npz has only the train split; write npz:.*/X$"),
        ("pets", "is a folder; write folder:pets"),
        ("pets/train", "is a folder; write folder:pets$"),
        ("folder:pets/train", r"has no folder train/; write folder:.*/pets$"),
        ("flat", "write folder:flat; it needs flat/train/CLASS/IMAGE"),
        ("arrays", "is a folder; write npz:arrays/one"),
        ("npz:arrays", "is a folder, expected .npz files; write npz:.*/arrays/one$"),
        ("poem.txt", r"is a file; write text:poem\.txt$"),
        ("data.csv", r"write text:data\.csv for text; images need"),
        ("cifar-10", "did you mean 'cifar10'"),
        ("CIFAR100", "did you mean 'cifar100'"),
        ("fashion_mnist", "did you mean 'fashion-mnist'"),
        ("fashionmnist", "did you mean 'fashion-mnist'"),
        ("Digits", "did you mean 'digits'"),
        ("image-net:pets", "did you mean 'imagenet:DIR'"),
        ("folders:pets", "did you mean 'folder:DIR'"),
        ("nothing/like/this", "unknown data source .* expected one of digits"),
    ],
)
@pytest.mark.usefixtures("hints")
def test_hints(source: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        open_data(source)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("hints")
def test_every_hint_opens(capsys: pytest.CaptureFixture[str]) -> None:
    for source in ("npz:X", "npz:one", "npz:one.npz", "folder:pets", "npz:arrays/one"):
        open_data(source)
    assert main(["train", "--model", "resnet8", "--data", "X-train.npz"]) == 2
    assert capsys.readouterr().err == ("error: data source 'X-train.npz' is a file; write npz:X\n")


@pytest.mark.filterwarnings("default")
def test_the_command_prints_a_warning_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from_1 = {f"{s}_labels": labels + 1 for s, (_, labels) in ARRAYS.items()}
    np.savez(tmp_path / "x.npz", **as_medmnist(**from_1))
    words = ["train", "--model", "resnet8", "--data", f"npz:{tmp_path / 'x'}", "--epochs", "1"]
    assert main([*words, "--batch-size", "4", "-o", str(tmp_path / "run")]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning" in line.lower()]
    assert len(lines) == 1
    assert lines[0].startswith("warning: 1 of the 4 classes of npz:")

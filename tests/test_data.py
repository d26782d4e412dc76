"""Data sources: what they give, that splits are sound, and every bad input's one line."""

import gzip
import struct
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from ela_probe.data.augmentation import augment_batch
from ela_probe.data.images import ImageData
from ela_probe.data.opening import open_data
from ela_probe.data.spec import DataSpec
from ela_probe.data.stratified import stratified_order
from ela_probe.errors import DataError, DataWarning

CLASSES = ("cat", "dog", "owl")


def write_npz(folder, *, train=90, test=30, classes=CLASSES, **changes):
    """npz:PREFIX whose pixels say class and position; `changes` replace arrays of both files."""
    for split, count in (("train", train), ("test", test)):
        labels = np.arange(count) % 3
        images = np.zeros((count, 8, 8, 3), np.uint8)
        images[..., 0] = (labels * 100)[:, None, None]
        images[..., 1] = np.arange(count)[:, None, None]
        images[..., 2] = np.arange(8)[None, None, :]
        arrays = {"images": images, "labels": labels, **changes}
        if classes is not None:
            arrays["classes"] = np.array(classes)
        np.savez(folder / f"set-{split}.npz", **{k: v for k, v in arrays.items() if v is not None})
    return f"npz:{folder / 'set'}"


def write_folder(root, splits=("train", "test"), classes=CLASSES, size=(12, 9)):
    for split in splits:
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", size, (label * 100, i, 9 * i)).save(folder / f"{i}.png")
    return f"folder:{root}"


def everything(data, split, **options):
    batches = list(data.loader(split, **options))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


@pytest.fixture(scope="module")
def digits():
    return open_data("digits")


def test_digits_are_32_pixels_wide_with_three_channels(digits):
    assert (digits.size("train"), digits.size("val"), digits.size("test")) == (1293, 144, 360)
    assert (digits.spec.channels, digits.spec.image_size, digits.spec.num_classes) == (3, 32, 10)
    images, labels = next(iter(digits.loader("test", batch_size=7)))
    assert images.shape == (7, 3, 32, 32)
    assert images.dtype == torch.float32
    assert labels.shape == (7,)
    assert labels.dtype == torch.int64


def test_digits_test_images_do_not_depend_on_the_seed(digits):
    other = open_data("digits", seed=5)
    assert torch.equal(digits.dataset("test").labels, other.dataset("test").labels)
    assert not torch.equal(digits.dataset("val").indices, other.dataset("val").indices)


def test_training_images_are_normalised_to_mean_0_and_deviation_1(tmp_path):
    images, _ = everything(open_data(write_npz(tmp_path)), "train")
    images = images.double()
    # The images are float32, and so are the mean and the deviation that they were divided by.
    assert images.mean((0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    assert images.std((0, 2, 3), correction=0).tolist() == pytest.approx([1, 1, 1], abs=1e-5)


def test_a_constant_channel_is_divided_by_one(tmp_path):
    source = write_npz(tmp_path, images=None, labels=None)
    for split in ("train", "test"):
        np.savez(
            tmp_path / f"set-{split}.npz",
            images=np.full((9, 8, 8, 1), 51, np.uint8),
            labels=np.arange(9) % 3,
        )
    with pytest.warns(DataWarning, match="no variance"):
        spec = open_data(source).spec
    assert spec.mean == pytest.approx((0.2,))
    assert spec.std == (1.0,)


def test_splits_are_disjoint_and_hold_the_classes_in_proportion(tmp_path):
    data = open_data(write_npz(tmp_path), limit=60, val_fraction=0.2)
    train, val = data.dataset("train"), data.dataset("val")
    assert len(train) == 48
    assert len(val) == 12
    assert not set(train.indices.tolist()) & set(val.indices.tolist())
    assert train.labels.bincount().tolist() == [16] * 3
    assert val.labels.bincount().tolist() == [4] * 3


def test_limit_also_narrows_a_split_for_evaluation(tmp_path):
    data = open_data(write_npz(tmp_path))
    _, labels = everything(data, "test", limit=9)
    assert labels.bincount().tolist() == [3, 3, 3]
    assert len(everything(data, "test", limit=10_000)[1]) == 30


def test_every_prefix_of_the_stratified_order_is_in_proportion():
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    order = stratified_order(labels, seed=3)
    assert sorted(order.tolist()) == list(range(100))
    for n in range(101):
        counts = labels[order[:n]].bincount(minlength=3)
        expected = n * torch.tensor([0.6, 0.3, 0.1])
        assert (counts - expected).abs().max() <= 1.5


def test_the_spec_opens_the_same_images_again_after_json(tmp_path):
    data = open_data(write_npz(tmp_path), limit=60, seed=4)
    spec = DataSpec.model_validate_json(data.spec.model_dump_json())
    assert spec == data.spec
    again = ImageData.from_spec(spec)
    for split in ("train", "val", "test"):
        for ours, theirs in zip(everything(data, split), everything(again, split), strict=True):
            assert torch.equal(ours, theirs)


def test_paths_in_a_spec_are_absolute(tmp_path, monkeypatch):
    write_npz(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert open_data("npz:set").spec.source == f"npz:{tmp_path / 'set'}"
    moved = open_data("npz:set").spec.with_source("cifar10", root="here")
    assert (moved.source, moved.root) == ("cifar10", str(tmp_path / "here"))


def test_a_moved_spec_keeps_normalisation_and_classes(tmp_path):
    (tmp_path / "there").mkdir()
    spec = open_data(write_npz(tmp_path)).spec
    there = write_npz(tmp_path / "there", train=300, test=60)
    data = ImageData.from_spec(cast(DataSpec, spec.with_source(there)))
    assert (data.spec.mean, data.spec.std, data.spec.classes) == (spec.mean, spec.std, CLASSES)
    assert data.size("test") == 60


def test_the_order_is_fixed_by_seed_and_epoch_alone(tmp_path):
    data = open_data(write_npz(tmp_path))

    def labels_of(epoch, **options):
        loader = data.loader("train", batch_size=32, shuffle=True, augment=True, **options)
        cast(Any, loader.sampler).set_epoch(epoch)
        torch.rand(epoch + 1)  # the global random state must not matter
        return torch.cat([x.flatten() for x, _ in loader])

    assert torch.equal(labels_of(0), labels_of(0))
    assert torch.equal(labels_of(3), labels_of(3, num_workers=2))
    assert not torch.equal(labels_of(0), labels_of(1))
    assert not torch.equal(labels_of(0), labels_of(0, seed=1))


@pytest.mark.parametrize("augment", ["none", "crop", "crop-flip"])
def test_batches_of_images_on_a_device_are_made_there(tmp_path, augment):
    data = open_data(write_npz(tmp_path), augment=augment)
    options: dict[str, Any] = {"batch_size": 32, "shuffle": True, "augment": True}
    on_cpu = data.on_device(torch.device("cpu"))
    expected = everything(data, "train", **options)
    for ours, theirs in zip(everything(on_cpu, "train", **options), expected, strict=True):
        assert torch.equal(ours, theirs)
    # "meta" stands for a GPU: there too an operation with a tensor of the CPU raises
    images, labels = next(iter(data.on_device(torch.device("meta")).loader("train", **options)))
    assert (images.device.type, labels.device.type) == ("meta", "cpu")
    assert images.shape == (32, *expected[0].shape[1:])


def test_only_arrays_are_kept_on_a_device(tmp_path):
    write_folder(tmp_path)
    with pytest.raises(DataError, match=r"separate files; expected npz:PREFIX.*leave"):
        open_data(f"folder:{tmp_path}").on_device(torch.device("cpu"))


def test_reading_leaves_the_global_random_state_alone(tmp_path):
    data = open_data(write_npz(tmp_path))
    before = torch.get_rng_state()
    everything(data, "train", shuffle=True, augment=True)
    assert torch.equal(before, torch.get_rng_state())


def test_a_shuffled_pass_holds_every_image_once(tmp_path):
    data = open_data(write_npz(tmp_path))
    plain, _ = everything(data, "train", batch_size=32)
    shuffled, _ = everything(data, "train", batch_size=32, shuffle=True)
    numbers = plain[:, 1, 0, 0]
    assert not torch.equal(numbers, shuffled[:, 1, 0, 0])
    assert torch.equal(numbers.sort().values, shuffled[:, 1, 0, 0].sort().values)


def test_a_data_set_also_reads_one_by_one(tmp_path):
    dataset = open_data(write_npz(tmp_path)).dataset("test")
    images, labels = everything(open_data(write_npz(tmp_path)), "test")
    assert torch.equal(torch.stack([dataset[i][0] for i in range(len(dataset))]), images)
    assert [int(dataset[i][1]) for i in range(len(dataset))] == labels.tolist()
    with pytest.raises(IndexError):
        dataset[len(dataset)]


@pytest.mark.parametrize("kind", ["crop", "crop-flip"])
def test_augmentation_shifts_and_mirrors_each_image_on_its_own(kind):
    images = torch.arange(1, 257, dtype=torch.float).reshape(1, 1, 16, 16).repeat(400, 1, 1, 1)
    result = augment_batch(images, kind, seed=0)
    assert result.shape == images.shape
    padded = torch.nn.functional.pad(images[0], (2, 2, 2, 2))
    windows = [padded[:, i : i + 16, j : j + 16] for i in range(5) for j in range(5)]
    allowed = windows + ([w.flip(-1) for w in windows] if kind == "crop-flip" else [])
    seen = {next(i for i, w in enumerate(allowed) if torch.equal(w, r)) for r in result}
    assert len(seen) == len(allowed)  # 400 draws of 25 or 50: each is met
    assert torch.equal(result, augment_batch(images, kind, seed=0))


def test_no_augmentation_changes_nothing():
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    assert torch.equal(augment_batch(images, "none", seed=1), images)


def test_a_folder_is_resized_and_cut_to_squares(tmp_path):
    data = open_data(write_folder(tmp_path), val_fraction=0)
    assert data.spec.classes == CLASSES
    assert data.spec.image_size == 32
    images, labels = everything(data, "test")
    assert images.shape == (12, 3, 32, 32)
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_val_of_a_folder_is_the_test_split_unless_there_is_one(tmp_path):
    alone = open_data(write_folder(tmp_path / "a", ("train", "val")), val_fraction=0.25)
    assert [alone.size(s) for s in ("train", "val", "test")] == [9, 3, 12]
    both = open_data(write_folder(tmp_path / "b", ("train", "val", "test")), val_fraction=0.25)
    assert [both.size(s) for s in ("train", "val", "test")] == [12, 12, 12]


def test_large_folders_are_decoded_on_every_read(tmp_path, monkeypatch):
    source = write_folder(tmp_path)
    kept = everything(open_data(source), "test")[0]
    monkeypatch.setattr("ela_probe.data.image_stores.IN_MEMORY_BYTES", 0)
    data = open_data(source)
    assert not data.dataset("test").in_memory
    assert torch.equal(everything(data, "test", num_workers=0)[0], kept)


def test_images_are_resized_when_asked(tmp_path):
    data = open_data(write_npz(tmp_path), image_size=16)
    assert everything(data, "val")[0].shape[1:] == (3, 16, 16)
    assert ImageData.from_spec(cast(DataSpec, data.spec)).dataset("test")[0][0].shape == (3, 16, 16)


def write_idx(folder, *, zipped=False, count=20):
    folder.mkdir(parents=True, exist_ok=True)
    for stem in ("train", "t10k"):
        pixels = np.full((count, 28, 28), 255, np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for name, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
            content = header + array.tobytes()
            path = folder / f"{stem}-{name}-ubyte{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(content) if zipped else content)


@pytest.mark.parametrize(
    ("inside", "zipped"), [("", True), ("", False), ("FashionMNIST/raw", False)]
)
def test_fashion_mnist_is_read_from_idx_files_and_padded(tmp_path, inside, zipped):
    write_idx(tmp_path / inside, zipped=zipped)
    data = open_data("fashion-mnist", root=tmp_path)
    assert (data.spec.channels, data.spec.image_size, data.spec.augment) == (1, 32, "crop")
    assert data.spec.mean == pytest.approx((28**2 / 32**2,))
    assert data.spec.classes[0] == "T-shirt/top"


def test_a_truncated_idx_file_is_named(tmp_path):
    write_idx(tmp_path)
    path = tmp_path / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte.*is truncated"):
        open_data("fashion-mnist", root=tmp_path)


@pytest.mark.parametrize("source", ["cifar10", "cifar100", "fashion-mnist"])
def test_a_missing_download_says_how_to_get_it(tmp_path, source):
    with pytest.raises(DataError, match=rf"{source} is not in .*--download") as caught:
        open_data(source, root=tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("digit", "did you mean 'digits'"),
        ("cifar-10", "did you mean 'cifar10'"),
        ("npz", "has no path"),
        ("folder:", "has no path"),
        ("digits:x", "unknown data source"),
        ("???", "expected one of digits"),
    ],
)
def test_unknown_sources(source, message):
    with pytest.raises(DataError, match=message.replace("?", r"\?")):
        open_data(source)


PIXELS = np.zeros((6, 8, 8, 3), np.uint8)
LABELS = np.arange(6) % 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": None}, "contains no images"),
        ({"labels": None}, "contains no labels"),
        ({"images": PIXELS - 0.5, "labels": LABELS}, "float64 with values from -0.5 to -0.5"),
        ({"images": PIXELS[..., 0, 0], "labels": LABELS}, r"expected \(N, H, W\) or"),
        ({"images": PIXELS[:0], "labels": LABELS[:0]}, "are empty"),
        ({"images": PIXELS, "labels": LABELS[:5]}, "6 images but 5 labels"),
        ({"images": PIXELS, "labels": LABELS + 0.5}, r"label 0\.5 at position 0 .* is a fraction"),
        ({"images": PIXELS, "labels": LABELS + 1}, "label 3 .* is beyond the 3 classes"),
        ({"images": PIXELS, "labels": LABELS - 1}, "label -1 .* is negative"),
        ({"images": PIXELS[:, :5], "labels": LABELS}, "are 5 x 8, expected square"),
        (
            {"images": np.array([{}] * 6), "labels": LABELS},
            "can't be read as an .npz file of plain",
        ),
    ],
)
def test_bad_npz_files(tmp_path, changes, message):
    with pytest.raises(DataError, match=message) as caught:
        open_data(write_npz(tmp_path, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut"])
def test_a_file_that_is_no_npz(tmp_path, content):
    source = write_npz(tmp_path)
    (tmp_path / "set-test.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"set-test\.npz can't be read"):
        open_data(source)


def test_a_missing_npz_file_is_named(tmp_path):
    source = write_npz(tmp_path)
    (tmp_path / "set-test.npz").unlink()
    with pytest.raises(DataError, match=r"set-test\.npz does not exist"):
        open_data(source)


def test_class_names_that_differ_between_splits(tmp_path):
    source = write_npz(tmp_path, classes=("cat", "cow", "owl"))
    kept = (tmp_path / "set-test.npz").read_bytes()
    write_npz(tmp_path)
    (tmp_path / "set-test.npz").write_bytes(kept)
    with pytest.raises(DataError, match=r"class 1 is 'dog' in one and 'cow' in the other"):
        open_data(source)


def test_bad_folders(tmp_path):
    with pytest.raises(DataError, match=r"has no folder train/; expected .*/train/CLASS/IMAGE"):
        open_data(f"folder:{tmp_path}")
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="neither test/ nor val/"):
        open_data(f"folder:{tmp_path}")
    (tmp_path / "val" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match="train contains no images"):
        open_data(f"folder:{tmp_path}")
    write_folder(tmp_path / "b", ("train",))
    write_folder(tmp_path / "b", ("val",), classes=("cat", "dog"))
    with pytest.raises(DataError, match=r"class folders differ.*only the first has "):
        open_data(f"folder:{tmp_path / 'b'}")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_corrupt_image_is_named_in_one_line(tmp_path, num_workers):
    source = write_folder(tmp_path)
    (tmp_path / "test" / "dog" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    with pytest.raises(DataError, match=r"dog/2\.png is not a readable image") as caught:
        everything(open_data(source), "test", num_workers=num_workers)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 2}, "limit 2 is too small; expected 3 or more"),
        ({"limit": 0}, "limit 0 is too small"),
        ({"val_fraction": 1.0}, "out of range"),
        ({"val_fraction": -0.1}, "out of range"),
        ({"limit": 3, "val_fraction": 0.99}, "leave none"),
        ({"seed": -1}, "seed -1"),
        ({"image_size": 0}, "image size 0"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        open_data(write_npz(tmp_path), **options)


def test_a_split_without_images_says_why(tmp_path):
    data = open_data(write_npz(tmp_path), val_fraction=0)
    assert data.size("val") == 0
    with pytest.raises(DataError, match="no val images"):
        data.loader("val")
    with pytest.raises(DataError, match="unknown split 'dev'"):
        data.dataset("dev")  # type: ignore[arg-type]


def test_other_data_than_the_spec_says_is_refused(tmp_path, digits):
    source = write_npz(tmp_path)
    with pytest.raises(DataError, match=r"has the 3 classes cat, dog, owl, expected the 10"):
        ImageData.from_spec(digits.spec.with_source(source))
    grey = digits.spec.model_copy(update={"channels": 1, "mean": (0.5,), "std": (1.0,)})
    with pytest.raises(DataError, match="has 3 channels, expected 1"):
        ImageData.from_spec(grey)


def test_a_model_that_does_not_fit_is_refused_with_both_sides(digits):
    digits.spec.check_model(num_classes=10, in_channels=3)
    with pytest.raises(DataError, match="10 classes in the data, 100 in the model; 3 channels"):
        digits.spec.check_model(num_classes=100, in_channels=1)


def test_a_spec_is_checked_when_made(digits):
    fields = digits.spec.model_dump()
    for wrong in ({"std": (1.0, 1.0)}, {"std": (0.0, 1.0, 1.0)}, {"foreign": 1}, {"limit": 0}):
        with pytest.raises(ValueError, match="validation error"):
            DataSpec(**{**fields, **wrong})

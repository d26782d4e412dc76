"""ImageNet's reading, on parts of the two photographs that scikit-learn ships."""

import json

import numpy as np
import pytest
import torch
from ela_probe_cli import main
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision.transforms import v2

from ela_probe.checkpoint import read_checkpoint
from ela_probe.data.augmentation import augment_batch, random_crops
from ela_probe.data.image_stores import ImageNetFiles, read_rgb
from ela_probe.data.images import ImageData
from ela_probe.data.opening import open_data
from ela_probe.errors import DataError

CLASSES = ("n02942699", "n11939491")  # of temples and of flowers


@pytest.fixture(scope="module")
def photographs():
    return [Image.fromarray(pixels) for pixels in load_sample_images().images]


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory, photographs):
    """DIR/train and DIR/val of JPEG files in sizes of their own."""
    root = tmp_path_factory.mktemp("imagenet")
    rng = np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 3)):
        for name, whole in zip(CLASSES, photographs, strict=True):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                left, top = rng.integers(0, 300), rng.integers(0, 200)
                width, height = rng.integers(120, 340), rng.integers(120, 220)
                part = whole.crop((left, top, left + width, top + height))
                part.save(root / split / name / f"{name}_{i}.JPEG", quality=90)
    return root


def open_small(imagenet, **options):
    return open_data(f"imagenet:{imagenet}", image_size=64, **options)


def batches(data, split, *, epoch=0, **options):
    loader = data.loader(split, batch_size=8, **options)
    loader.sampler.set_epoch(epoch)
    return torch.cat([images for images, _ in loader])


def test_splits_sizes_and_normalisation_are_those_of_imagenet(imagenet):
    data = open_data(f"imagenet:{imagenet}", val_fraction=0.2)
    assert [data.size(split) for split in ("train", "val", "test")] == [16, 4, 6]
    spec = data.spec
    assert (spec.classes, spec.image_size, spec.augment) == (CLASSES, 224, "resized-crop-flip")
    assert (spec.mean, spec.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    images, labels = next(iter(data.loader("test")))
    assert images.shape == (6, 3, 224, 224)
    assert labels.tolist() == [0] * 3 + [1] * 3


def test_test_images_are_torchvisions_resize_256_and_centre_crop_224(imagenet):
    path = imagenet / "val" / CLASSES[1] / f"{CLASSES[1]}_2.JPEG"
    plain = v2.Compose(
        [
            v2.Resize(256),
            v2.CenterCrop(224),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    ours, label = open_data(f"imagenet:{imagenet}").dataset("test")[5]
    torch.testing.assert_close(ours, plain(read_rgb(str(path))).as_subclass(torch.Tensor))
    assert label == 1


def test_training_images_are_torchvisions_random_crops_and_flips(imagenet):
    path = str(imagenet / "train" / CLASSES[0] / f"{CLASSES[0]}_0.JPEG")
    photographs = ImageNetFiles([(path, 0)] * 3, image_size=32)
    ours = photographs.read(torch.arange(3), augment="resized-crop-flip", seed=5)
    plain = v2.Compose([v2.RandomResizedCrop(32, antialias=True), v2.RandomHorizontalFlip()])
    with torch.random.fork_rng():
        torch.manual_seed(5)
        theirs = [v2.functional.pil_to_tensor(plain(read_rgb(path))) for _ in range(3)]
    assert torch.equal(ours, torch.stack(theirs))
    assert not torch.equal(ours[0], ours[1])


def test_crops_follow_from_seed_and_epoch_alone_and_leave_the_random_state(imagenet):
    data = open_small(imagenet)
    before = torch.get_rng_state()
    first = batches(data, "train", shuffle=True, augment=True, num_workers=0)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(3)
    assert torch.equal(first, batches(data, "train", shuffle=True, augment=True, num_workers=2))
    assert not torch.equal(first, batches(data, "train", shuffle=True, augment=True, epoch=1))


def test_images_in_memory_take_the_same_augmentation():
    image = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(4, 1, 1, 1)
    crops = augment_batch(image, "resized-crop-flip", seed=2)
    assert crops.shape == image.shape
    assert torch.equal(crops, random_crops(4, lambda i: image[i], size=16, seed=2))


def test_photographs_are_read_from_disk_every_time(imagenet):
    path = imagenet / "train" / CLASSES[0] / f"{CLASSES[0]}_0.JPEG"
    photographs = ImageNetFiles([(str(path), 0)], image_size=32)
    before = photographs.read(torch.tensor([0]))
    content = path.read_bytes()
    try:
        Image.new("RGB", (40, 30)).save(path, format="JPEG")
        assert not torch.equal(photographs.read(torch.tensor([0])), before)
        path.write_bytes(content[:200])
        with pytest.raises(DataError, match=r"_0\.JPEG is not a readable image"):
            photographs.read(torch.tensor([0]))
    finally:
        path.write_bytes(content)


def test_a_spec_opens_the_same_photographs_again(imagenet):
    data = open_small(imagenet, limit=8)
    again = ImageData.from_spec(type(data.spec).model_validate_json(data.spec.model_dump_json()))
    assert torch.equal(batches(data, "train"), batches(again, "train"))


def test_folders_that_are_no_imagenet(tmp_path):
    with pytest.raises(DataError, match=r"has no folder train/; expected .*/train/CLASS/IMAGE"):
        open_data(f"imagenet:{tmp_path}")
    (tmp_path / "ILSVRC2012_img_val.tar").touch()
    with pytest.raises(DataError, match=r"unpack ILSVRC2012_img_val\.tar with torchvision"):
        open_data(f"imagenet:{tmp_path}")
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
    with pytest.raises(DataError, match="train contains no images"):
        open_data(f"imagenet:{tmp_path}")


def test_a_recipe_trains_on_photographs_and_the_result_is_analysed(imagenet, tmp_path, capsys):
    """The built-in recipe, made small: end to end on real images."""
    words = ["train", "--recipe", "imagenet-mrla", "--data", f"imagenet:{imagenet}"]
    words += ["--model", "mrla_b_resnet14", "--image-size", "64", "--epochs", "1", "--warmup", "0"]
    words += [
        "--batch-size",
        "10",
        "--workers",
        "1",
        "--device",
        "cpu",
        "-o",
        str(tmp_path / "run"),
    ]
    assert main(words) == 0
    best = tmp_path / "run" / "best.pt"
    spec = read_checkpoint(best).header.data
    assert (spec.image_size, spec.val_fraction, spec.std) == (64, 0, (0.229, 0.224, 0.225))
    capsys.readouterr()
    assert main(["analyze", str(best), "-o", str(tmp_path / "an"), "--no-figures", "--json"]) == 0
    provenance = json.loads(capsys.readouterr().out)["provenance"]
    assert (provenance["samples"], provenance["data"]) == (20, f"imagenet:{imagenet}")

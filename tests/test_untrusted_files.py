"""Small files that ask for a lot, or hold what no reader of a format expects: one clear error."""

import gzip
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cli.inputs import PLAN
from ela_probe.checkpoint import read_checkpoint
from ela_probe.data import idx
from ela_probe.data.image_stores import ImageFileError, check_headers, read_rgb
from ela_probe.data.images import open_images
from ela_probe.data.npz import read_npz
from ela_probe.data.opening import open_data
from ela_probe.discovery.sites_file import SitesFile
from ela_probe.errors import CheckpointError, DataError, ElaProbeError, ModelError, OptionError
from ela_probe.models.bounded_build import bounded_build, check_size
from ela_probe.models.registry import FAMILIES, ModelSpec
from ela_probe.system import reading
from ela_probe.system.reading import (
    check_regular_files,
    read_bytes,
    read_document,
    refusing,
)
from ela_probe.training.recipes import read_recipe
from ela_probe.training.resuming import check_resume
from tests.test_whole_analysis import npy, stored

RECIPES = {
    "a number without digits": "seeds: 0x_",
    "5,000 digits": f"train: {{epochs: {'9' * 5000}}}",
    "half a character": 'model_args: {a: "\\ud800"}',
    "an hour of 99": "description: 2001-01-01 99:99:99",
    "lists in lists": "[" * 500 + "]" * 500,
    "a key of any length": f"{'x' * 5000}: 1",
}


@pytest.mark.parametrize("text", RECIPES.values(), ids=RECIPES.keys())
def test_a_recipe_that_no_parser_expects_is_refused_in_a_short_line(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(OptionError, match=r"r\.yaml") as caught:
        read_recipe(path)
    assert len(str(caught.value)) < 800


def sites(tmp_path: Path, text: str) -> SitesFile:
    path = tmp_path / "s.toml"
    path.write_text(text)
    return SitesFile.load(path)


def test_an_expression_that_takes_years_in_pythons_engine_answers_at_once(tmp_path: Path) -> None:
    file = sites(tmp_path, "[[stage]]\nregex = '(.*.*.*.*.*.*.*.*.*)*Z'")
    assert file.stage[0].grouped(["stages.0.0.retrieval" * 50]) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[stage]]\nregex = '(?=a)a'", "no look-around"),
        ("[[stage]]\nmodules = 'a'\ncalls = 1000000000000", "less than or equal to 1000"),
        ("a = " + "{a=" * 3000 + "1" + "}" * 3000, "cannot read the sites file"),
    ],
)
def test_a_sites_file_that_asks_for_too_much_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        sites(tmp_path, text)


def test_pipes_are_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OptionError, match="it is a pipe or a device, not a file; expected text"):
        read_document(pipe, what="the note", expected="text", error=OptionError)
    with pytest.raises(CheckpointError, match="it is a pipe or a device"):
        read_checkpoint(pipe)


@pytest.mark.parametrize("name", ["x" * 5000, "a\x00b"])
def test_a_name_that_no_file_can_have_is_refused(name: str) -> None:
    for source in (name, f"npz:{name}", f"folder:{name}", f"text:{name}"):
        with pytest.raises(DataError, match="cannot read the data source") as caught:
            open_data(source)
        assert len(str(caught.value)) < 300
    with pytest.raises(OptionError, match="cannot read the plan x*…x*: File name too long"):
        PLAN.check(Path("x" * 5000))


def test_pictures_and_directories_of_models_with_pipes_are_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "a.png"
    os.mkfifo(pipe)
    for read in (read_rgb, lambda path: check_headers([path])):
        with pytest.raises(ImageFileError, match="it is a pipe or a device"):
            read(str(pipe))
    with pytest.raises(DataError, match="it is a pipe or a device"):
        check_regular_files(tmp_path, error=DataError)


def test_a_file_larger_than_such_a_file_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    with pytest.raises(OptionError, match="it has 5 bytes, more than the 4 that are read"):
        read_bytes(tmp_path / "a", what="the note", expected="text", error=OptionError, most=4)


def test_a_document_of_too_many_values_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each wrong value takes about a thousand bytes of pydantic's memory."""
    monkeypatch.setattr(reading, "MOST_VALUES", 3)
    (tmp_path / "a").write_text("[1, 2, 3, 4]")
    assert read_document(tmp_path / "a", what="the note", expected="text", error=OptionError)
    (tmp_path / "a").write_text("[1, 2, 3, 4, 5]")
    with pytest.raises(OptionError, match="it has more than 3 values"):
        read_document(tmp_path / "a", what="the note", expected="text", error=OptionError)


def test_a_config_asks_for_no_more_layers_than_there_are_tensors(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    save_file({"w": torch.zeros(2)}, tmp_path / "model.safetensors")
    config = {"model_type": "llama", "num_hidden_layers": 10**9}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="asks for 1,000,000,000 layers, but there are 1 ten"):
        read_checkpoint(f"hf:{tmp_path}")


def test_a_network_that_the_weights_can_not_fill_is_not_built() -> None:
    with (
        pytest.raises(CheckpointError, match="a asks for a network, which is far larger than"),
        bounded_build("a asks for a network", tensors=1, numbers=1),
    ):
        torch.nn.Sequential(*(torch.nn.Identity() for _ in range(20_000)))
    assert len(torch.nn.Sequential(*(torch.nn.Identity() for _ in range(20_000)))) == 20_000


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("attnres100000", {}),
        ("attnres6", {"vocab_size": 10**6}),
        ("mrla_b_resnet20", {"in_channels": 10**5}),
        ("mrla_b_resnet20", {"num_classes": 2**62}),
        ("rla_g_resnet20", {"hidden": 10**7}),
        ("mrla_b_resnet" + "9" * 5000, {}),
        ("attnres6", {"name": "x"}),
    ],
)
def test_a_header_asks_for_no_more_than_the_file_can_fill(
    name: str, args: dict[str, object]
) -> None:
    state = {"fc.weight": torch.zeros(10, 64)}
    with pytest.raises(ElaProbeError) as caught:
        check_size(ModelSpec(name=name, args=args), state)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_measured_without_memory(family: str) -> None:
    depths = FAMILIES[family].depths
    state = {"weight": torch.zeros(10**8, dtype=torch.uint8).expand(10**8)}
    check_size(ModelSpec(name=f"{family}{depths[0] if depths else ''}"), state)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.eye(3).to_sparse(),
        torch.zeros(3, device="meta"),
        torch.zeros(1).expand(2**40),
    ],
    ids=["sparse", "meta", "a view of one number"],
)
def test_tensors_without_values_in_the_file_are_refused(
    tmp_path: Path, tensor: torch.Tensor
) -> None:
    torch.save({"fc.weight": tensor}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path / "a.pt", spec=ModelSpec(name="mrla_b_resnet8"))
    assert "no plain tensor" in str(caught.value)


@pytest.mark.parametrize("size", [(1, 1000), (1000, 1)])
def test_a_picture_of_extreme_sides_is_refused_before_it_is_decoded(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    Image.new("RGB", size).save(tmp_path / "a.png")
    with pytest.raises(ImageFileError, match=r"a\.png has 1,?0?0?0? x 1,?0?0?0? pixels"):
        read_rgb(str(tmp_path / "a.png"))


def test_an_image_size_that_no_memory_holds_is_refused() -> None:
    with pytest.raises(DataError, match="image size 1000000000 is out of range; expected 1 to"):
        open_images("digits", image_size=10**9)


def test_an_archive_is_read_no_further_than_its_largest_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idx, "LARGEST_FILE", 1000)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(bytes((0, 0, 8, 3)) + bytes(10**6)))
    with pytest.raises(DataError, match="is not an IDX file"):
        idx.read_fashion_mnist_split(tmp_path, "train")


def test_a_member_that_is_no_array_is_refused(tmp_path: Path) -> None:
    images, labels = npy(np.zeros((3, 8, 8), np.uint8)), npy(np.arange(3))
    (tmp_path / "d-test.npz").write_bytes(stored(images=images, labels=labels).getvalue())
    (tmp_path / "d-train.npz").write_bytes(stored(images=b"no array", labels=labels).getvalue())
    with pytest.raises(DataError, match="can't be read as an .npz file of plain arrays"):
        read_npz(str(tmp_path / "d"))


def test_no_message_advises_to_load_pickled_objects(tmp_path: Path) -> None:
    torch.save({"state_dict": torch.nn.Linear(1, 1)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="pickled Python objects") as caught:
        read_checkpoint(tmp_path / "a.pt", spec=ModelSpec(name="mrla_b_resnet8"))
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.pt", "resume.ckpt"])
def test_a_weight_with_another_bit_is_refused(tmp_path: Path, name: str) -> None:
    """PyTorch itself reads it without a word."""
    path = tmp_path / name
    torch.save({"ela_probe": "{}", "state_dict": {"w": torch.full((999,), 1.5)}}, path)
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((999,), 1.5).numpy().tobytes()) + 400] ^= 1
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["state_dict"]["w"].ne(1.5).sum() == 1
    with pytest.raises(
        CheckpointError, match=r"is damaged: .*data/0 is not what its checksum says"
    ):
        if name == "a.pt":
            read_checkpoint(path)
        else:
            check_resume(path, torch.nn.Linear(1, 1), definition={}, ela=None)


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (MemoryError(), "it needs more memory than there is"),
        (RecursionError("maximum"), "it is nested too deeply"),
        (KeyError("a\x1b[2J"), "KeyError: 'a"),
        (OSError(28, "No space left"), "No space left"),
        (pickle.UnpicklingError("GLOBAL os.system was not; set weights_only=False"), "os.system"),
        (type("PanicException", (BaseException,), {})("index"), "PanicException: index"),
    ],
)
def test_whatever_a_library_raises_becomes_one_error(raised: BaseException, reason: str) -> None:
    with pytest.raises(DataError) as caught, refusing(DataError, "a is damaged", "write it again"):
        raise raised
    assert str(caught.value).startswith("a is damaged: ")
    assert str(caught.value).endswith("; write it again")
    assert reason in str(caught.value)
    assert str(caught.value).isprintable()
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), SystemExit(2), ModelError("ours")])
def test_our_errors_and_interruptions_pass(raised: BaseException) -> None:
    with pytest.raises(type(raised)) as caught, refusing(DataError, "a is damaged"):
        raise raised
    assert caught.value is raised


def test_a_model_is_named_by_its_name_alone() -> None:
    with pytest.raises(ModelError):
        ModelSpec(name="mrla_b_resnet8", args={"name": "x"}).build()


@pytest.mark.parametrize(
    "state",
    [
        {"callbacks": 1},
        {"callbacks": {"ela_probe.History": []}},
        {"callbacks": {"ela_probe.History": {"origin": {}, "rows": 3}}, "state_dict": {}},
        {"callbacks": {"ela_probe.History": {"origin": {"a": 1}, "rows": []}}, "state_dict": {}},
        {"callbacks": {"ela_probe.History": {"origin": {}, "rows": []}}, "state_dict": {"a": 1}},
    ],
)
def test_a_training_state_of_another_structure_is_refused(
    tmp_path: Path, state: dict[str, object]
) -> None:
    torch.save(state, tmp_path / "resume.ckpt")
    with pytest.raises(CheckpointError, match="is no training state of ela-probe"):
        check_resume(tmp_path / "resume.ckpt", torch.nn.Linear(1, 1), definition={}, ela=None)

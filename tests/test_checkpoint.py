"""Checkpoints: identical after loading, and refused in one clear line when they are not ours."""

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ela_probe import load_checkpoint, prune, save_checkpoint
from ela_probe.checkpoint import read_checkpoint
from ela_probe.errors import CheckpointError, ModelError, OutputError
from ela_probe.models.registry import ModelSpec, create_model
from ela_probe.pruning.planners import make_plan
from tests.support.networks import settled
from tests.support.pruning import analysed

SPEC = ModelSpec(name="mrla_b_resnet32")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6])
def test_pruned_saved_and_loaded_gives_identical_outputs(
    mrla_b: nn.Module, images: Tensor, tmp_path: Path, suffix: str, share: float
) -> None:
    plan = make_plan(analysed(mrla_b), skip=share, planner="alternate")
    pruned = prune(mrla_b, plan)
    path = save_checkpoint(
        tmp_path / f"pruned.{suffix}", pruned, spec=SPEC, plans=[plan], metrics={"accuracy": 0.5}
    )
    loaded = read_checkpoint(path)
    assert torch.equal(loaded.model(images), pruned(images))
    assert loaded.header.plans == (plan,)
    assert loaded.header.metrics == {"accuracy": 0.5}
    assert loaded.header.versions["torch"] == torch.__version__.split("+")[0]
    assert not loaded.model.training


def test_a_model_pruned_twice_is_rebuilt(mrla_b: nn.Module, images: Tensor, tmp_path: Path) -> None:
    first = make_plan(analysed(mrla_b), skip=0.4, planner="alternate")
    once = prune(mrla_b, first)
    second = make_plan(analysed(once), skip=0.3)
    twice = prune(once, second)
    path = save_checkpoint(tmp_path / "twice.pt", twice, spec=SPEC, plans=[first, second])
    assert torch.equal(load_checkpoint(path)(images), twice(images))


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("nested", [False, True])
def test_a_bare_state_dict_loads_with_its_model(
    images: Tensor, tmp_path: Path, prefix: str, nested: bool
) -> None:
    model = settled("mrla_l_resnet20")
    state: object = OrderedDict((prefix + k, v) for k, v in model.state_dict().items())
    if nested:
        state = {"epoch": 3, "arch": "x", "best_acc": 1.0, "state_dict": state, "optimizer": {}}
    torch.save(state, tmp_path / "bare.pth")
    loaded = load_checkpoint(tmp_path / "bare.pth", spec=ModelSpec(name="mrla_l_resnet20"))
    assert torch.equal(loaded(images), model(images))
    with pytest.raises(CheckpointError, match="say which model it belongs to with --model"):
        load_checkpoint(tmp_path / "bare.pth")


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return create_model("mrla_b_resnet14")


def under_compile() -> nn.Module:
    return torch.compile(create_model("mrla_b_resnet14"), backend="eager")  # type: ignore[return-value]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("factory", ["on_meta", "under_compile"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_factory_may_build_on_meta_or_compile(
    factory: str, dtype: torch.dtype, images: Tensor, tmp_path: Path
) -> None:
    """The loaded model is the plain one, with the weights of the file in its own types."""
    model = settled("mrla_b_resnet14").to(dtype)
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    loaded = load_checkpoint(tmp_path / "bare.pth", spec=ModelSpec(name=f"{__name__}:{factory}"))
    assert type(loaded) is type(model)
    assert torch.equal(loaded(images), model.float()(images))
    assert all(parameter.requires_grad for parameter in loaded.parameters())


class Evil:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.path}",)


def write(path: Path, kind: str) -> Path:
    good = path.with_name("good.pt")
    if kind == "missing":
        return path
    if kind == "directory":
        path.mkdir()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("these are no weights")
    elif kind == "truncated":
        save_checkpoint(good, create_model("mrla_b_resnet8"), spec=ModelSpec(name="mrla_b_resnet8"))
        path.write_bytes(good.read_bytes()[:-2000])
    elif kind == "module":
        torch.save(nn.Linear(2, 2), path)
    elif kind == "evil":
        torch.save({"state_dict": Evil(path.with_name("pwned"))}, path)
    elif kind == "evil pickle":
        path.write_bytes(pickle.dumps(Evil(path.with_name("pwned"))))
    elif kind == "list":
        torch.save([1, 2], path)
    elif kind == "numbers":
        torch.save({"a": 1.0}, path)
    elif kind == "header":
        torch.save({"ela_probe": '{"format_version": 9}', "state_dict": {"a": torch.ones(1)}}, path)
    elif kind == "header type":
        torch.save({"ela_probe": 3, "state_dict": {"a": torch.ones(1)}}, path)
    elif kind == "nan":
        model: Any = create_model("mrla_b_resnet8")
        model.fc.weight.data[0, 0] = float("nan")
        save_checkpoint(path, model, spec=ModelSpec(name="mrla_b_resnet8"))
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "there is no such file"),
        ("directory", "it is a folder"),
        ("empty", r"is empty \(0 bytes\)"),
        ("text", "no PyTorch checkpoint, or a truncated one"),
        ("truncated", "no PyTorch checkpoint, or a truncated one"),
        ("module", r"pickled Python objects.*torch\.save\(model\.state_dict\(\)"),
        ("evil", "pickled Python objects, which run code on loading"),
        ("evil pickle", "pickled Python objects|no PyTorch checkpoint"),
        ("list", "holds a list that is no state dict"),
        ("numbers", "holds a dict that is no state dict"),
        ("header", "its header is not one that this version reads"),
        ("header type", "header"),
        ("nan", r"fc\.weight holds NaN"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, kind: str, message: str) -> None:
    path = write(tmp_path / "given.pt", kind)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 64])
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "given.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="empty|safetensors"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("mrla_b_resnet14", {}, "is missing"),
        ("resnet8", {}, "is unknown to the model"),
        (
            "mrla_b_resnet8",
            {"num_classes": 3},
            r"fc\.weight is \[10, 64\], the model has \[3, 64\]",
        ),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused(
    tmp_path: Path, name: str, arguments: dict[str, int], message: str
) -> None:
    torch.save(create_model("mrla_b_resnet8").state_dict(), tmp_path / "bare.pt")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "bare.pt", spec=ModelSpec(name=name, args=arguments))


def small() -> nn.Module:
    return create_model("mrla_b_resnet8")


def test_a_factory_is_run_only_when_it_is_named_again(tmp_path: Path) -> None:
    spec = ModelSpec(name="tests.test_checkpoint:small")
    path = save_checkpoint(tmp_path / "f.pt", small(), spec=spec)
    with pytest.raises(CheckpointError, match="not run unasked; pass --factory tests"):
        load_checkpoint(path)
    assert load_checkpoint(path, spec=spec)
    with pytest.raises(ModelError, match="no model is called"):
        torch.save(small().state_dict(), tmp_path / "b.pt")
        load_checkpoint(tmp_path / "b.pt", spec=ModelSpec(name="unknown"))


def test_another_name_than_the_checkpoints_own_is_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "a.pt", small(), spec=ModelSpec(name="mrla_b_resnet8"))
    with pytest.raises(CheckpointError, match="leave out --model"):
        load_checkpoint(path, spec=ModelSpec(name="mrla_b_resnet20"))


@pytest.mark.parametrize("failing", ["write_bytes", "fsync"])
def test_a_full_disk_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    spec = ModelSpec(name="mrla_b_resnet8")
    path = save_checkpoint(tmp_path / "a.pt", small(), spec=spec)
    before = path.read_bytes()

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path if failing == "write_bytes" else os, failing, full)
    with pytest.raises(OutputError, match="No space left on device.*free some space"):
        save_checkpoint(path, small(), spec=spec)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.pt"]

"""Checkpoints of other people's training scripts, models of any output, inputs of any kind."""

import argparse
import builtins
import collections
import copyreg
import datetime
import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ela_probe_cli import main
from torch import Tensor, nn

from ela_probe import analyze, load_checkpoint
from ela_probe.checkpoint import read_checkpoint
from ela_probe.data.example_inputs import ExampleInputs, RandomInputs
from ela_probe.errors import (
    CheckpointError,
    DataError,
    ElaProbeError,
    ModelError,
    OptionError,
)
from ela_probe.evaluation.evaluate import evaluate
from ela_probe.forward import inputs_and_labels
from ela_probe.models.registry import ModelSpec, create_model
from ela_probe.system.restricted_load import STAND_INS, Ignored, load_restricted
from tests.support.commands import run
from tests.support.image_sets import write_images

CODE = """
import torch
from ela_probe.models.registry import create_model
import {name}_parts

def net(width=8, **rest):
    import {name}_late  # while the model is built, the folder must still be importable
    return create_model("mrla_b_resnet14", head_dim=width, **rest)

class Outputs(torch.nn.Module):
    def __init__(self, form):
        super().__init__()
        self.net, self.form = net(), form
        self.stages = self.net.stages

def batches():
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        yield torch.randn(4, 3, 16, 16, generator=generator)

def fails():
    raise OSError("no such disk")

number = 3
"""


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Path]:
    """Somebody's code, in a folder that is not on sys.path."""
    folder = tmp_path / "repo"
    folder.mkdir()
    name = "fakerepo"
    (folder / f"{name}.py").write_text(CODE.format(name=name))
    (folder / f"{name}_parts.py").write_text("")
    (folder / f"{name}_late.py").write_text("")
    (folder / f"{name}_broken.py").write_text("import a_module_that_is_nowhere")
    (folder / f"{name}_raises.py").write_text("1 / 0")
    before = list(sys.path)
    yield folder
    assert sys.path == before
    for module in [module for module in sys.modules if module.startswith(name)]:
        del sys.modules[module]


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A checkpoint as the public training scripts write it."""
    model = create_model("mrla_b_resnet14", head_dim=8)
    stored = {
        "epoch": 12,
        "arch": "resnet14_mrlab",
        "state_dict": {f"module.{name}": value for name, value in model.state_dict().items()},
        "best_acc": np.float64(71.5),
        "acc": np.float32(70.5),
        "history": np.arange(4.0),
        "optimizer": torch.optim.SGD(model.parameters(), 0.1).state_dict(),
        "args": argparse.Namespace(arch="resnet14_mrlab", work_dir=Path("runs"), lr=0.1),
        "meters": collections.defaultdict(list, loss=[1.0]),
        "recent": collections.deque([1, 2], maxlen=2),
        "when": datetime.timedelta(seconds=3),
    }
    torch.save(stored, tmp_path / "model_best.pth.tar")
    return tmp_path / "model_best.pth.tar"


def test_what_scripts_write_beside_the_weights_is_read_past(
    published: Path, repository: Path
) -> None:
    spec = ModelSpec(name="fakerepo:net", path=repository)
    model = load_checkpoint(published, spec=spec)
    stored = load_restricted(published.read_bytes())
    assert isinstance(stored["best_acc"], Ignored)
    assert stored["args"].values["lr"] == 0.1
    assert stored["meters"] == {"loss": [1.0]}
    assert stored["recent"] == [1, 2]
    first = next(iter(stored["state_dict"].values()))
    assert torch.equal(next(iter(model.state_dict().values())), first)


def test_the_arch_is_named_where_the_model_is_missing(published: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'resnet14_mrlab'.*module:resnet14_mrlab --path"):
        load_checkpoint(published)
    with pytest.raises(CheckpointError, match=r"does not fit.*calls its network 'resnet14_mrlab'"):
        load_checkpoint(published, spec=ModelSpec(name="mrla_b_resnet8"))
    state = create_model("mrla_b_resnet8").state_dict()
    torch.save({"model": state, "args": argparse.Namespace(model="deit_x")}, tmp_path / "d.pth")
    with pytest.raises(CheckpointError, match="that it calls 'deit_x'"):
        load_checkpoint(tmp_path / "d.pth")
    torch.save({"model": state, "arch": "a\nb\x1b[31m"}, tmp_path / "e.pth")
    with pytest.raises(CheckpointError, match="bare state dict; say"):
        load_checkpoint(tmp_path / "e.pth")


def test_plain_weights_win_over_averaged_ones(tmp_path: Path) -> None:
    def weight(model: nn.Module) -> Tensor:
        return model.get_parameter("fc.weight")

    plain, averaged = create_model("mrla_b_resnet8"), create_model("mrla_b_resnet8")
    spec = ModelSpec(name="mrla_b_resnet8")
    stored = {"model_ema": averaged.state_dict(), "model": plain.state_dict()}
    torch.save(stored, tmp_path / "both.pth")
    read = read_checkpoint(tmp_path / "both.pth", spec=spec)
    assert torch.equal(weight(read.model), weight(plain))
    assert read.note is not None
    assert "'model'" in read.note
    assert "'model_ema'" in read.note
    torch.save({"model_ema": averaged.state_dict(), "model": None}, tmp_path / "one.pth")
    read = read_checkpoint(tmp_path / "one.pth", spec=spec)
    assert torch.equal(weight(read.model), weight(averaged))
    assert "averaged weights" in str(read.note)


class Calls:
    """Unpickling this calls a function with arguments."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.made = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.made


class Bound:
    """Unpickling this sets state on what a call made."""

    def __reduce__(self) -> tuple[Any, ...]:
        return SimpleNamespace, (), {"a": 1}


ATTACKS = {
    "eval": lambda path: Calls(eval, f"open({str(path)!r}, 'w')"),
    "exec": lambda path: Calls(exec, f"open({str(path)!r}, 'w')"),
    "open": lambda path: Calls(open, str(path), "w"),
    "getattr": lambda path: Calls(getattr, Path, "touch"),
    "import": lambda path: Calls(builtins.__import__, "os"),
    "touch": lambda path: Calls(Path.touch, path),
    "pickle": lambda path: Calls(pickle.loads, pickle.dumps(Calls(open, str(path), "w"))),
    "numpy load": lambda path: Calls(np.load, str(path)),
    "numpy testing": lambda path: Calls(np.testing.rundocs),
    "reconstructor": lambda path: Calls(copyreg._reconstructor, Path, object, None),  # type: ignore[attr-defined]
    "namespace": lambda path: Bound(),
    "inside arguments": lambda path: argparse.Namespace(x=Calls(open, str(path), "w")),
    "inside a scalar": lambda path: np.array([Calls(open, str(path), "w")], dtype=object),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_malicious_pickle_is_still_refused(tmp_path: Path, attack: str) -> None:
    path = tmp_path / "touched"
    state = create_model("mrla_b_resnet8").state_dict()
    torch.save({"state_dict": state, "args": ATTACKS[attack](path)}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="is refused|no PyTorch checkpoint") as caught:
        load_checkpoint(tmp_path / "evil.pth", spec=ModelSpec(name="mrla_b_resnet8"))
    assert "\n" not in str(caught.value)
    assert not path.exists()


def test_nothing_that_is_let_in_is_the_thing_itself() -> None:
    """No code of numpy, argparse or pathlib runs on what a file says: all are stand-ins."""
    assert {getattr(s, "__module__", None) for s in STAND_INS.values()} == {
        "ela_probe.system.restricted_load"
    }
    made = Ignored("f8", False, True)
    made.__setstate__((3, "<", None, None, None, -1, -1, 0))
    assert vars(made) == {}
    before = set(torch.serialization.get_safe_globals())
    with pytest.raises(Exception, match=r".*"):
        load_restricted(b"no torch file")
    assert set(torch.serialization.get_safe_globals()) == before


def test_factories_are_found_in_the_folder_only(repository: Path, tmp_path: Path) -> None:
    spec = ModelSpec(name="fakerepo:net", args={"width": 16}, path=repository)
    assert isinstance(spec.build(), nn.Module)
    assert "path" not in spec.model_dump()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "fakerepo.py").write_text("")
    for name, path, message in (
        ("fakerepo:none", repository, "cannot find 'fakerepo:none'"),
        ("fakerepo:number", repository, "is a int; expected a function"),
        ("fakerepo:fails", repository, "could not be built .*OSError: no such disk"),
        ("fakerepo:net", tmp_path / "other", "was already imported from .*repo"),
        ("fakerepo:net", tmp_path / "none", "is no folder"),
        ("fakerepo_none:net", repository, "cannot find the module"),
        ("fakerepo_broken:net", repository, "not installed here: No module named 'a_module_that"),
        ("fakerepo_raises:net", repository, "failed: ZeroDivisionError"),
    ):
        with pytest.raises(ModelError, match=message):
            ModelSpec(name=name, path=path).build()
    with pytest.raises(ModelError, match="does not take|could not be built"):
        ModelSpec(name="fakerepo:net", args={"depht": 3}, path=repository).build()


class Wrapped(nn.Module):
    """A classifier that gives more than logits, in some form, and takes inputs in some form."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.inner = create_model("mrla_b_resnet8")
        self.stages = self.inner.stages
        self.form = form

    def forward(self, images: Tensor, scale: Tensor | None = None) -> Any:
        logits = self.inner(images if scale is None else images * scale.view(-1, 1, 1, 1))
        return {
            "tensor": logits,
            "tuple": (logits, images),
            "dict": {"features": images, "logits": logits},
            "object": SimpleNamespace(logits=logits),
        }[self.form]


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the adapter of our ResNets know the wrapped ones."""
    from ela_probe.adapters.resnet import ResNetAdapter
    from ela_probe.models.resnet import ResNet

    monkeypatch.setattr(
        ResNetAdapter, "matches", lambda self, model: isinstance(model, ResNet | Wrapped)
    )


@pytest.mark.parametrize("form", ["tensor", "tuple", "dict", "object"])
def test_models_with_more_outputs_are_analysed(known: None, form: str) -> None:
    model = Wrapped(form).eval()
    batches = [(torch.randn(6, 3, 8, 8), torch.arange(6)) for _ in range(2)]
    provenance = analyze(model, batches, progress=False).provenance
    assert provenance.samples == 12
    assert (provenance.accuracy is None) == (form == "tuple")
    if form == "tuple":
        with pytest.raises(
            DataError, match=r"labels \(N,\) and logits \(N, K\).*as output a tuple"
        ):
            evaluate(model, batches, progress=False)


def test_batches_may_be_unlabelled_tuples_or_dicts(known: None) -> None:
    model, x, scale = Wrapped("tensor").eval(), torch.randn(6, 3, 8, 8), torch.full((6,), 2.0)
    forms: list[tuple[Any, bool]] = [
        (x, True),
        ([x], True),
        ({"images": x, "scale": scale}, True),
        ((x, scale), False),
        (((x, scale), torch.arange(6)), True),
        (({"images": x, "scale": scale}, torch.arange(6)), True),
        ((x, torch.rand(6, 2)), True),  # targets of another task
    ]
    for batch, labelled in forms:
        made = analyze(model, iter([batch]), labelled=labelled, progress=False)
        assert made.provenance.samples == 6
        _, labels = inputs_and_labels(batch, labelled=labelled)
        assert (made.provenance.accuracy is None) == (labels is None or labels.ndim == 2)
    with pytest.raises(DataError, match="without a tensor"):
        analyze(model, [{}], progress=False)


def test_random_inputs_are_seeded_and_do_not_depend_on_the_batch_size() -> None:
    for arguments in ({"size": (3, 4)}, {"size": (5,), "dtype": "int64", "high": 7}):
        one = RandomInputs(**arguments, samples=7, batch_size=7)
        many = RandomInputs(**arguments, samples=7, batch_size=2)
        assert torch.equal(torch.cat(list(one)), torch.cat(list(many)))
        assert torch.equal(next(iter(one)), next(iter(one)))
        assert len(list(many)) == len(many) == 4
    assert "random inputs (3 x 4, float32, seed 0)" in str(RandomInputs((3, 4)))
    for bad in ({"size": ()}, {"size": (0, 3)}, {"size": (3,), "dtype": "int64"},
                {"size": (3,), "high": 3}):  # fmt: skip
        with pytest.raises(OptionError):
            RandomInputs(**bad)


def test_example_inputs_are_cut_to_the_limit(repository: Path) -> None:
    given = ExampleInputs("fakerepo:batches", path=repository, limit=6)
    assert [len(batch) for batch in given] == [4, 2]
    for name in ("fakerepo:fails", "fakerepo:none"):
        with pytest.raises(ElaProbeError, match=name):
            list(ExampleInputs(name, path=repository))


def test_the_whole_chain_on_somebodys_checkpoint(
    published: Path, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = ["--factory", "fakerepo:net", "--factory-args", '{"width": 8}', "--path", repository]
    cpu = ["--device", "cpu"]
    size = ["--input-size", "3,16,16", "--limit", 8, "--no-figures"]
    made = run(capsys, "analyze", published, *code, *size, *cpu, "-o", tmp_path / "an")
    assert made["provenance"]["data"] == "random inputs (3 x 16 x 16, float32, seed 0)"
    assert made["provenance"]["accuracy"] is None
    assert "random" in made["provenance"]["notes"][0]
    assert main([str(w) for w in ("analyze", published, *code, *size, *cpu)]) == 0
    out, err = capsys.readouterr()
    assert "random inputs (3 x 16 x 16" in " ".join(out.split())
    assert "note: the inputs are random" in err
    run(capsys, "plan", tmp_path / "an", "--skip", 0.34, "-o", tmp_path / "plan.json")
    pruned = tmp_path / "pruned.pt"
    run(capsys, "prune", published, *code, "--plan", tmp_path / "plan.json", "-o", pruned)
    header = read_checkpoint(pruned, spec=ModelSpec(name="fakerepo:net", path=repository)).header
    assert (header.model.name, header.model.args) == ("fakerepo:net", {"width": 8})
    line = run(capsys, "analyze", pruned, *size, *cpu, code=2)
    assert "pass --factory fakerepo:net" in line
    again = run(
        capsys, "analyze", pruned, *code, "--example-inputs", "fakerepo:batches", "--limit", 6,
        "--no-figures", *cpu,
    )  # fmt: skip
    assert len(again["sites"]) == 4
    assert again["provenance"]["data"] == "the batches of fakerepo:batches"
    write_images(tmp_path / "set", classes=10, size=16)
    images = run(
        capsys, "analyze", pruned, *code, "--data", f"npz:{tmp_path / 'set'}", "--image-size", 8,
        "--no-figures", *cpu,
    )  # fmt: skip
    assert images["provenance"]["accuracy"] is not None


def test_declared_sites_on_the_command_line(
    published: Path, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sites = tmp_path / "sites.toml"
    sites.write_text('[[stage]]\nname = "third"\nmodules = "stages.2.*.retrieval.tap"\n')
    code = ["--factory", "fakerepo:net", "--factory-args", json.dumps({"width": 8})]
    words = ["--path", repository, "--sites", sites, "--input-size", "3,16,16", "--limit", 4]
    made = run(capsys, "analyze", published, *code, *words, "--no-figures", "--device", "cpu")
    assert [site["stage"] for site in made["sites"]] == ["third", "third"]


OPTIONS = {
    "two inputs": (["--data", "digits", "--input-size", "3,8,8"], "--data and --input-size"),
    "size": (["--input-size", "3x8x8"], "expected numbers with commas"),
    "negative": (["--input-size", "3,-8"], "expected positive numbers"),
    "high alone": (["--input-high", "5"], "got --input-high without --input-size"),
    "no high": (["--input-size", "8", "--input-dtype", "int64"], "--input-high"),
    "examples": (["--example-inputs", "nothing"], "expected package.module:function"),
    "image size": (["--image-size", "32"], "does not say what data it belongs to"),
    "sites": (["--sites", "none.toml"], "cannot read the sites file none.toml"),
    "path": (["--input-size", "3,8,8", "--path", "none"], "--path none: no such folder"),
    "channels": (["--input-size", "5,8,8"], "does not take"),
    "no data": ([], "--input-size C,H,W"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_that_do_not_fit_get_one_line(
    case: str, published: Path, repository: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    words, message = OPTIONS[case]
    code = ["--factory", "fakerepo:net", "--factory-args", '{"width": 8}']
    path = [] if "--path" in words else ["--path", repository]
    line = run(capsys, "analyze", published, *code, *path, *words, "--device", "cpu", code=2)
    assert message in line
    assert list((tmp_path / "here").iterdir()) == []
    assert not list(tmp_path.glob("*-analysis"))

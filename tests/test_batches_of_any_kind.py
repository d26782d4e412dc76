"""Batches as people have them: fields are named, arrays become tensors, errors say what to do."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader

from ela_probe import ELA, analyze, create_model
from ela_probe.checkpoint import save_checkpoint
from ela_probe.data.example_inputs import ExampleInputs, parse_batch_keys
from ela_probe.errors import DataError, OptionError
from ela_probe.evaluation.evaluate import evaluate
from ela_probe.forward import (
    call,
    first_samples,
    sample_count,
)
from ela_probe.models.registry import ModelSpec
from ela_probe.system.nested_tensors import as_tensors, mapped
from tests.support.commands import run

IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
LABELS = torch.arange(6)


@dataclass
class Batch:
    image: Any
    label: Any
    paths: list[str] = field(default_factory=lambda: ["a", "b"])


@dataclass(frozen=True)
class Frozen:
    image: Any
    label: Any


class Named(NamedTuple):
    image: Any
    label: Any
    weight: float


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return create_model("mrla_b_resnet8").double().eval()


WITH_FIELDS: dict[str, Callable[..., Any]] = {
    "dict": lambda x, y: {"image": x, "label": y, "path": ["a"]},
    "data class": Batch,
    "frozen data class": Frozen,
    "named tuple": lambda x, y: Named(x, y, 1.0),
    "pair of dicts": lambda x, y: ({"image": x, "mask": None}, {"label": y, "box": None}),
}


@pytest.mark.parametrize("kind", WITH_FIELDS)
@pytest.mark.parametrize("arrays", [False, True])
def test_named_fields_give_what_a_pair_gives(kind: str, arrays: bool) -> None:
    model = network()
    x, y = (IMAGES.numpy(), LABELS.numpy()) if arrays else (IMAGES, LABELS)
    batch = WITH_FIELDS[kind](x, y)
    plain = evaluate(model, [(IMAGES, LABELS)], progress=False)
    found = evaluate(model, [batch], inputs="image", labels="label", progress=False)
    assert (found["accuracy"], found["loss"]) == (plain["accuracy"], plain["loss"])
    one = analyze(model, iter([(IMAGES, LABELS)]), progress=False)
    other = analyze(model, iter([batch]), progress=False, inputs="image", labels="label")
    assert (one.provenance.accuracy, one.provenance.loss) == (
        other.provenance.accuracy, other.provenance.loss
    )  # fmt: skip
    assert one.pairs.equals(other.pairs)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, image: Tensor, scale: Tensor | None = None) -> Tensor:
        logits: Tensor = self.inner(image if scale is None else image * scale[:, None, None, None])
        return logits


def test_several_inputs_are_keyword_arguments_and_none_are_all_but_the_labels() -> None:
    model, scale = TwoInputs().eval(), torch.full((6,), 2.0)
    batch = {"image": IMAGES, "scale": scale, "label": LABELS}
    wanted = evaluate(network(), [(IMAGES * 2, LABELS)], progress=False)["loss"]
    for inputs in (["image", "scale"], ("scale", "image"), None):
        found = evaluate(model, [batch], inputs=inputs, labels="label", progress=False)
        assert found["loss"] == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize(
    ("batch", "names", "message"),
    [
        ({"image": IMAGES, "label": LABELS}, {},
         r"keys image, label, but .* takes image, scale \(optional\) .*; .* \(inputs=, labels=;"),
        ({"img": IMAGES}, {"inputs": "image"}, "has no field 'image'; its fields are img; name"),
        ({"image": IMAGES, "y": LABELS}, {"inputs": "image", "labels": "label"},
         "has no field 'label'; its fields are image, y"),
        ((IMAGES, LABELS, LABELS), {}, r"got a batch of 3 arguments, but .* takes image, scale"),
        (Batch(IMAGES, LABELS), {}, "does not take a Batch with the fields image, label, paths"),
        (IMAGES, {"inputs": "image"}, "a Tensor where the field 'image' was named; expected"),
        ((IMAGES, LABELS), {"labels": "y"}, "a Tensor where the field 'y' was named"),
        (np.array(["a", "b"]), {}, "without a tensor"),
    ],
)  # fmt: skip
def test_a_batch_that_does_not_fit_is_told_with_its_fields(
    known: None, batch: Any, names: dict[str, Any], message: str
) -> None:
    for verb in (analyze, evaluate):
        with pytest.raises(DataError, match=message) as caught:
            verb(TwoInputs().eval(), [batch], progress=False, **names)
        assert "\n" not in str(caught.value)


def test_a_type_error_inside_the_model_stays_one() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + None  # type: ignore[operator]

    for inputs in (IMAGES, {"x": IMAGES}):
        with pytest.raises(TypeError):
            call(Broken(), inputs)


class Takes(nn.Module):
    """Takes the labels itself, as transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, image: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.inner(image)
        return {"logits": logits, "loss": logits.sum()}


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the adapter of our ResNets know the networks around one."""
    from ela_probe.adapters.resnet import ResNetAdapter
    from ela_probe.models.resnet import ResNet

    for kind in (Takes, OverSteps, TwoInputs):
        monkeypatch.setattr(kind, "stages", property(lambda self: self.inner.stages), raising=False)
    monkeypatch.setattr(
        ResNetAdapter,
        "matches",
        lambda self, m: isinstance(m, ResNet | Takes | OverSteps | TwoInputs),
    )


def test_labels_that_nobody_named_are_pointed_out(known: None) -> None:
    batch = {"image": IMAGES, "labels": LABELS}
    found = analyze(Takes().eval(), [batch], progress=False).provenance
    assert found.accuracy is None
    assert (
        "fields image, labels, and none was named as the labels; name it with labels='labels' ("
        in (" ".join(found.notes))
    )
    named = analyze(Takes().eval(), [batch], labels="labels", progress=False).provenance
    assert named.accuracy is not None
    with pytest.raises(DataError, match="name it with labels='labels'"):
        evaluate(Takes().eval(), [batch], progress=False)


class OverSteps(nn.Module):
    """Reads a PackedSequence: the mean of each sequence's steps is an image."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, packed: PackedSequence) -> Tensor:
        padded, lengths = nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)
        means = padded.sum(1) / lengths.to(padded.device)[:, None]
        logits: Tensor = self.inner(means.view(-1, 3, 8, 8))
        return logits


def packed() -> PackedSequence:
    """Six sequences of other lengths, out of order; the steps of one are equal."""
    steps = [image.flatten().expand(1 + t % 3, -1) for t, image in enumerate(IMAGES)]
    return pack_sequence(steps, enforce_sorted=False)


def test_packed_sequences_are_one_input_of_so_many_samples(known: None) -> None:
    assert sample_count(packed()) == sample_count((packed(), LABELS)) == 6
    wanted = evaluate(network(), [(IMAGES, LABELS)], progress=False)
    for batch, names in (
        ((packed(), LABELS), {}),
        ({"steps": packed(), "label": LABELS}, {"inputs": "steps", "labels": "label"}),
    ):
        found = evaluate(OverSteps().eval(), [batch], progress=False, **names)  # type: ignore[arg-type]
        assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-10)
        assert found["samples"] == 6
    assert analyze(OverSteps().eval(), [packed()], progress=False).provenance.samples == 6
    two = first_samples(packed(), 2)
    torch.testing.assert_close(OverSteps().eval()(two), network()(IMAGES[:2]))


def test_a_model_that_takes_no_packed_sequence_says_so(known: None) -> None:
    with pytest.raises(DataError, match=r"the model does not take a PackedSequence \(.*forward"):
        analyze(network(), [packed()], progress=False)


def test_containers_keep_their_kind() -> None:
    for batch in (
        Batch(IMAGES, {"y": LABELS}),
        Frozen([IMAGES], LABELS),
        Named(IMAGES, LABELS, 2.0),
    ):
        doubled = mapped(batch, lambda t: t * 2)
        assert type(doubled) is type(batch)
        torch.testing.assert_close(doubled.label if isinstance(batch, Named) else LABELS * 2,
                                   LABELS * 2)  # fmt: skip
        assert isinstance(batch.image, Tensor | list)  # the original is as it was
    halved = mapped(packed(), lambda t: t / 2 if t.is_floating_point() else t)
    assert torch.equal(halved.data, packed().data / 2)
    assert torch.equal(halved.batch_sizes, packed().batch_sizes)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0), np.arange(6)[::-1], np.arange(6).astype(">i4"), np.array(3),
        np.zeros((2, 0)), np.arange(6).reshape(2, 3).T, np.ones(3, dtype=bool),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_arrays_become_tensors_of_their_type(array: np.ndarray) -> None:
    array.flags.writeable = False
    tensor = as_tensors({"x": [array]})["x"][0]
    np.testing.assert_array_equal(tensor.numpy(), array)
    assert tensor.numpy().dtype == array.dtype.newbyteorder("=")


def test_other_arrays_stay() -> None:
    words = np.array(["a", "b"])
    assert as_tensors(words) is words


class Fields(pl.LightningModule):
    """A user's module whose batches have fields."""

    def __init__(self) -> None:
        super().__init__()
        self.net = create_model("mrla_b_resnet14", num_classes=3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        image, label = (batch["image"], batch["label"]) if isinstance(batch, dict) else (
            batch.image, batch.label
        )  # fmt: skip
        image, label = torch.as_tensor(image), torch.as_tensor(label)
        return F.cross_entropy(self.net(image), label)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01)


@pytest.mark.parametrize("kind", ["dict", "data class", "named tuple"])
@pytest.mark.parametrize("arrays", [False, True])
def test_ela_probes_whatever_the_batches_are(kind: str, arrays: bool) -> None:
    """It reads what the network is called with, and never looks at the batch."""
    x, y = IMAGES.float(), LABELS % 3
    made = WITH_FIELDS[kind](*((x.numpy(), y.numpy()) if arrays else (x, y)))
    ela = ELA(skip=0.5, warmup=1, ramp=1)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, callbacks=[ela],
    )  # fmt: skip
    trainer.fit(
        Fields(), DataLoader(cast(Any, [made] * 2), batch_size=None, collate_fn=lambda b: b)
    )
    assert ela.share == 0.5
    assert ela.analysis.provenance.samples == 12  # of an epoch


# The command


@pytest.mark.parametrize("text", ["", ":", "image:", "a,:y", ",", "a:b:c", "a:b,c"])
def test_malformed_keys_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match="expected INPUTS or INPUTS:LABELS, such as image:label"):
        parse_batch_keys(text)


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Path]:
    """Code of a user with batches of every kind."""
    (tmp_path / "fieldcode.py").write_text(
        "import numpy as np\n"
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Batch:\n"
        "    image: object\n"
        "    label: object\n"
        "x = np.random.default_rng(0).normal(size=(6, 3, 8, 8)).astype('float32')\n"
        "y = np.arange(6, dtype='int16')\n"
        "def dicts(): return [{'image': x, 'label': y}] * 2\n"
        "def one(): return Batch(x, y)\n"
        "def pairs(): return [(x, {'label': y})]\n"
        "def array(): return x\n"
    )
    yield tmp_path
    sys.modules.pop("fieldcode", None)


def test_example_inputs_with_keys_are_pairs_cut_to_the_limit(repository: Path) -> None:
    given = ExampleInputs(
        "fieldcode:dicts", path=repository, limit=8, inputs="image", labels="label"
    )
    assert given.labelled
    assert [len(images) for images, _ in given] == [len(labels) for _, labels in given] == [6, 2]
    assert [len(batch) for batch in ExampleInputs("fieldcode:array", path=repository)] == [6]


def test_the_command_takes_the_keys(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = save_checkpoint(
        tmp_path / "a.pt", network(), spec=ModelSpec(name="mrla_b_resnet8")
    )
    words = ["analyze", checkpoint, "--path", repository, "--no-figures", "-o", tmp_path / "an"]
    words += ["--device", "cpu", "--example-inputs"]
    losses = [
        run(capsys, *words, f"fieldcode:{name}", *keys)["provenance"]["loss"]
        for name, keys in (
            ("dicts", ["--batch-keys", "image:label"]),
            ("one", ["--batch-keys", "image:label"]),
            ("pairs", ["--batch-keys", ":label"]),
            ("array", []),
        )
    ]
    assert losses[0] == losses[1] == losses[2] is not None
    assert losses[3] is None
    line = run(capsys, *words, "fieldcode:dicts", code=2)
    assert "got a batch with the keys image, label, but the model's forward takes x" in line
    assert "--batch-keys INPUTS:LABELS" in line
    line = run(capsys, *words, "fieldcode:one", "--batch-keys", "img:label", code=2)
    assert "has no field 'img'; its fields are image, label" in line
    line = run(capsys, *words[:-1], "--batch-keys", "image", "--input-size", "3,8,8", code=2)
    assert "got --batch-keys without --example-inputs" in line
    found = run(capsys, "discover", checkpoint, "--path", repository, "--example-inputs",
                "fieldcode:dicts", "--batch-keys", "image:label")  # fmt: skip
    assert len(found["stages"]) == 3

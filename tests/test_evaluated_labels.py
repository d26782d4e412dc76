"""Labels of every type that people store: the same figures, -100 left out, the rest refused."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ela_probe import analyze, create_model
from ela_probe.errors import DataError
from ela_probe.evaluation.evaluate import evaluate
from ela_probe.evaluation.labels import IGNORED, class_labels
from ela_probe.training.config import TrainConfig
from ela_probe.training.module import ClassificationModule

INTEGERS = (
    torch.int8, torch.int16, torch.int32, torch.int64,
    torch.uint8, torch.uint16, torch.uint32, torch.uint64,
)  # fmt: skip
SIGNED = INTEGERS[:4]


class Answers(nn.Module):
    """The logits are the inputs."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits


def measured(logits: Tensor, labels: Any, *, size: int | None = None) -> dict[str, Any]:
    size = size or len(logits)
    batches = [(logits[i : i + size], labels[i : i + size]) for i in range(0, len(logits), size)]
    return evaluate(Answers(), batches, progress=False)


def by_hand(logits: Tensor, labels: Sequence[int]) -> tuple[float, float]:
    """Accuracy and mean cross entropy over the labels that count, in float64."""
    kept = [(row, label) for row, label in zip(logits.double(), labels, strict=True) if label >= 0]
    losses = [float(torch.logsumexp(row, 0) - row[label]) for row, label in kept]
    right = [int(row.argmax()) == label for row, label in kept]
    return sum(right) / len(right), sum(losses) / len(losses)


@given(st.lists(st.sampled_from([0, 1, 2, IGNORED]), min_size=1, max_size=12), st.integers(1, 5))
def test_what_is_ignored_counts_in_neither_figure(labels: list[int], size: int) -> None:
    logits = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(len(labels)))
    logits = logits.double()
    if all(label == IGNORED for label in labels):
        with pytest.raises(DataError, match="all labels are -100; expected some of 0 and up"):
            measured(logits, torch.tensor(labels), size=size)
        return
    result = measured(logits, torch.tensor(labels), size=size)
    accuracy, loss = by_hand(logits, labels)
    assert result["accuracy"] == pytest.approx(accuracy)
    assert result["loss"] == pytest.approx(loss, rel=1e-12)
    assert result["samples"] == len(labels)


LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(1)).double()
LABELS = [0, 2, 1, 1, 0, 2]


@pytest.mark.parametrize(
    "labels",
    [
        *(torch.tensor(LABELS).to(dtype) for dtype in INTEGERS),
        LABELS,
        torch.tensor(LABELS)[:, None],
        torch.nn.functional.one_hot(torch.tensor(LABELS)),
        torch.nn.functional.one_hot(torch.tensor(LABELS)).float(),
        torch.nn.functional.one_hot(torch.tensor(LABELS)).bool(),
        np.array(LABELS, dtype=">i2"),
        np.array(LABELS, dtype=np.uint16)[:, None],
    ],
    ids=lambda labels: f"{getattr(labels, 'dtype', 'list')} {getattr(labels, 'shape', '')}",
)
def test_every_form_of_labels_gives_the_same_figures(labels: Any) -> None:
    accuracy, loss = by_hand(LOGITS, LABELS)
    result = measured(LOGITS, labels)
    assert result["accuracy"] == pytest.approx(accuracy)
    assert result["loss"] == pytest.approx(loss, rel=1e-12)


def test_bool_labels_are_classes_0_and_1() -> None:
    logits = LOGITS[:, :2]
    labels = torch.tensor([True, False, True, True, False, False])
    accuracy, loss = by_hand(logits, labels.long().tolist())
    result = measured(logits, labels)
    assert result["accuracy"] == pytest.approx(accuracy)
    assert result["loss"] == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("dtype", SIGNED)
@pytest.mark.parametrize("label", [-1, -99, -101])
def test_other_negative_labels_are_refused(dtype: torch.dtype, label: int) -> None:
    labels = torch.tensor([0, 1, label]).to(dtype)
    with pytest.raises(DataError, match=f"label {label}; expected 0 to 2, or -100"):
        class_labels(labels, LOGITS[:3])


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (3, torch.int8), (156, torch.uint8), (2**16 - 100, torch.uint16),
        (2**32 - 100, torch.uint32), (2**64 - 100, torch.uint64), (2**63, torch.uint64),
    ],
)  # fmt: skip
def test_a_label_beyond_the_classes_is_named_as_it_is_stored(
    value: int, dtype: torch.dtype
) -> None:
    """A cast to a narrower or signed type would make -100 of most of these."""
    labels = torch.from_numpy(np.array([0, value], dtype=str(dtype).removeprefix("torch.")))
    with pytest.raises(DataError, match=rf"label {value}, the model only 3 classes \(0 to 2\)"):
        class_labels(labels, LOGITS[:2])


@pytest.mark.parametrize(
    "labels",
    [
        torch.rand(6), torch.rand(6, 3), torch.zeros(6, 3), torch.ones(6, 3), torch.arange(5),
        torch.zeros(6, 2, dtype=torch.int64), [0.5] * 6, [], "abcdef", None, {"y": 1},
        torch.zeros(6, dtype=torch.complex64),
    ],
)  # fmt: skip
def test_targets_of_another_task_are_no_classes(labels: Any) -> None:
    assert class_labels(labels, LOGITS) is None


def test_a_label_for_every_token() -> None:
    logits = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0)).double()
    labels = torch.tensor([[1, 2, IGNORED, 4], [0, IGNORED, IGNORED, 3]], dtype=torch.int32)
    accuracy, loss = by_hand(logits.flatten(0, 1), labels.flatten().tolist())
    result = measured(logits, labels, size=1)
    assert result["accuracy"] == pytest.approx(accuracy)
    assert result["loss"] == pytest.approx(loss, rel=1e-12)
    assert result["perplexity"] == pytest.approx(math.exp(loss), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8, torch.bool])
def test_an_analysis_takes_them(dtype: torch.dtype) -> None:
    model = create_model("mrla_b_resnet8", num_classes=2).eval()
    images, labels = torch.randn(6, 3, 8, 8), torch.tensor([0, 1, 1, 0, 1, 0])
    one, other = (
        analyze(model, [(images, given)], progress=False).provenance
        for given in (labels, labels.to(dtype))
    )
    assert (one.accuracy, one.loss) == (other.accuracy, other.loss)
    assert one.accuracy is not None


def test_an_analysis_says_why_accuracy_is_missing() -> None:
    model, images = create_model("mrla_b_resnet8").eval(), torch.randn(6, 3, 8, 8)

    def notes(batch: Any) -> str:
        found = analyze(model, [batch], progress=False).provenance
        assert found.accuracy is None
        return " ".join(found.notes)

    assert "got as labels a tensor [6] of float32, as output a tensor [6, 10]" in notes(
        (images, torch.rand(6))
    )
    assert "all labels are -100" in notes((images, torch.full((6,), IGNORED)))
    assert "measured" not in notes(images)  # nobody expects it


def test_training_leaves_them_out_too() -> None:
    module = ClassificationModule(
        Answers(), TrainConfig(epochs=1), num_classes=3, steps_per_epoch=1
    )
    module.check_loss_sometimes = lambda loss, *, step: None  # type: ignore[method-assign]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no trainer is there to log to
        for part in (slice(0, 4), slice(4, 6)):
            labels = torch.tensor([0, 2, IGNORED, 1, IGNORED, 2], dtype=torch.int32)[part]
            loss = module.training_step((LOGITS[part], labels), 0)
            module.validation_step((LOGITS[part], labels), 0)
            _, expected = by_hand(LOGITS[part], labels.tolist())
            assert float(loss) == pytest.approx(expected, rel=1e-12)
    accuracy, mean = by_hand(LOGITS, [0, 2, IGNORED, 1, IGNORED, 2])
    for sums in (
        (module.train_accuracy, module.train_loss), (module.val_accuracy, module.val_loss)
    ):  # fmt: skip
        # The sums are float32: 1e-7 an operation.
        assert [float(s.compute()) for s in sums] == pytest.approx([accuracy, mean], rel=1e-5)

"""Labels: what is accepted, what is refused, and that values are checked before any cast."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ela_probe.data.labels import class_indices, class_names
from ela_probe.errors import DataError

INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", ">i4")


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30))
def test_every_accepted_form_gives_the_same_classes(classes: list[int]) -> None:
    expected = torch.tensor(classes)
    forms = [np.array(classes, dtype) for dtype in (*INTEGERS, "float32", "float64", "float16")]
    forms += [form[:, None] for form in forms]
    forms += [np.eye(10, dtype=dtype)[classes] for dtype in ("uint8", "int64", "float32", "bool")]
    for form in forms:
        indices = class_indices(form, name="labels", num_classes=10)
        assert indices.dtype == torch.int64
        assert torch.equal(indices, expected)


def test_booleans_are_two_classes() -> None:
    assert class_indices(np.array([True, False]), name="labels").tolist() == [1, 0]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 2**64 - 100], np.uint64), "18446744073709551516 at position 1 .* is too"),
        (np.array([0, 2**63], np.uint64), "9223372036854775808 at position 1"),
        (np.array([1, -100]), "label -100 at position 1 .*-100 means no label"),
        (np.array([1, -1], np.int8), "label -1 at position 1 .* is negative"),
        (np.array([0.0, -3.0]), "label -3.0 at position 1 .* is negative"),
        (np.array([0, 0.5]), "label 0.5 at position 1 .* is a fraction"),
        (np.array([0, np.nan]), "label nan"),
        (np.array([0, np.inf]), "label inf"),
        (np.array([0, 1e300]), "too large for a class number"),
        (np.array([0, 10**7]), "too large for a class number"),
        (np.array(["cat", "dog"]), "expected integers; number the classes"),
        (np.array([0j]), "expected integers"),
        (np.array(3), r"shape \(\), expected"),
        (np.zeros((2, 3, 4), int), r"shape \(2, 3, 4\), expected"),
        (np.array([[0, 1, 0], [1, 1, 0]]), "row 1 is not one-hot: it has 2 values other than 0"),
        (np.array([[0, 1, 0], [0, 0, 0]]), "row 1 is not one-hot: it has 0 values"),
        (np.array([[0, 1, 0], [0, 2, 0]]), "row 1 is not one-hot: it has 1 values"),
        (np.array([[0.1, 0.9], [1, 0]]), "row 0 is not one-hot"),
        (np.array([[np.nan, 1.0]]), "row 0 is not one-hot"),
    ],
)
def test_refused_labels(labels: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        class_indices(labels, name="labels in FILE")
    assert "labels in FILE" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [*INTEGERS, "float64"])
def test_labels_beyond_the_class_list_are_refused(dtype: str) -> None:
    assert class_indices(np.array([2], dtype), name="x", num_classes=3).tolist() == [2]
    with pytest.raises(DataError, match=r"label 3.* is beyond the 3 classes \(0 to 2\)"):
        class_indices(np.array([2, 3], dtype), name="x", num_classes=3)


def test_class_names_are_text() -> None:
    assert class_names([b"cat", "caf\u00e9", 3], "x") == ("cat", "café", "3")
    for name in (b"caf\xe9", "caf\udce9"):
        with pytest.raises(DataError, match=r"class name .*e9.* of x is not valid UTF-8; rename"):
            class_names([name], "x")

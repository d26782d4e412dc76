"""The tensors that passed through a module are found when they are asked for, and no others."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from ela_probe.adapters import handover
from ela_probe.adapters.handover import Tensors
from ela_probe.system.nested_tensors import tensors_of

NESTED: Any = (torch.zeros(1), [torch.ones(2), {"x": torch.full((3,), 2.0)}], 5, torch.ones(4))


@pytest.mark.parametrize(
    "at", [0, 1, 3, -1, -4, slice(2), slice(None), slice(1, 3), slice(-2, None)]
)
def test_they_are_those_of_the_nested_containers(at: Any) -> None:
    expected = list(tensors_of(NESTED))[at]
    found = Tensors(NESTED)[at]
    if isinstance(at, slice):
        assert [t.shape for t in found] == [t.shape for t in expected]
        assert isinstance(found, list)
    else:
        assert torch.equal(found, expected)
    assert len(Tensors(NESTED)) == 4
    assert len([*Tensors(NESTED)]) == 4


def test_a_place_that_is_not_there_is_an_error() -> None:
    for at in (4, -5):
        with pytest.raises(IndexError):
            Tensors(NESTED)[at]


def test_they_are_detached_views() -> None:
    weight = torch.ones(2, requires_grad=True)
    (found,) = Tensors([weight])
    assert not found.requires_grad
    assert found.data_ptr() == weight.data_ptr()


def test_nothing_behind_the_one_that_is_read_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[int] = []

    def counting(value: Any) -> Iterator[Tensor]:
        for number, tensor in enumerate(tensors_of(value)):
            looked_at.append(number)
            yield tensor

    monkeypatch.setattr(handover, "tensors_of", counting)
    tensors = Tensors([torch.zeros(1)] * 100)
    assert looked_at == []
    assert len(tensors[:2]) == 2
    assert tensors[0].shape == (1,)
    assert looked_at == [0, 1]

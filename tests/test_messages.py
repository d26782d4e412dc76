"""Errors of other people's code inside our messages: always one line, never empty."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ela_probe.analysis.result import Analysis
from ela_probe.data.example_inputs import RandomInputs
from ela_probe.errors import AnalysisError, DataError
from ela_probe.pipeline.inputs import check_inputs
from ela_probe.system.messages import class_and_first_line, first_line


@given(st.text(), st.integers(20, 200))
def test_any_error_gives_one_line_that_is_not_blank(text: str, limit: int) -> None:
    line = first_line(ValueError(text), limit)
    assert line.strip()
    assert len(line) <= limit
    assert len(line.splitlines()) == 1


def test_an_error_without_text_is_named_by_its_class() -> None:
    assert first_line(ZeroDivisionError()) == "ZeroDivisionError"
    assert class_and_first_line(ZeroDivisionError()) == "ZeroDivisionError"
    assert first_line(ValueError("\n \n second")) == "second"
    assert class_and_first_line(ValueError("\nsecond")) == "ValueError: second"


class Mute(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise ValueError


def test_a_model_that_raises_without_a_word_is_reported() -> None:
    with pytest.raises(DataError, match=r"does not take random inputs .*\(ValueError\)"):
        check_inputs(Mute(), RandomInputs((3, 8, 8)))


def test_an_analysis_whose_reading_fails_without_a_word_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError

    for name in ("analysis.json", "arrays.npz", "summary.json"):
        (tmp_path / name).write_text("{}")
    monkeypatch.setattr(Path, "read_text", fail)
    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(AnalysisError, match=r"cannot read the analysis .*: ValueError"):
        Analysis.load(tmp_path)

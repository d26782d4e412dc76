"""Settings and documents: every mistake in one line, with what is known; differences in words."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from ela_probe.errors import OptionError
from ela_probe.system.messages import did_you_mean
from ela_probe.system.validation import Settings, Strict, differing_settings, explain


class Part(Strict):
    size: int = Field(1, ge=1)
    names: tuple[str, ...] = ()


class Whole(Settings):
    TITLE = "whole settings"

    speed: float = 1.0
    parts: tuple[Part, ...] = ()
    other: Part | None = None


def test_all_mistakes_stand_in_one_line() -> None:
    with pytest.raises(OptionError) as caught:
        Whole.of(speed="fast", sped=2, parts=[{"size": 0}, {"sise": 3}], other={"nmaes": []})
    assert str(caught.value) == (
        "whole settings: speed 'fast': Input should be a valid number, unable to parse string as a "
        "number; parts.0.size 0: Input should be greater than or equal to 1; "
        "there is no 'parts.1.sise' (did you mean 'size'?); expected size, names; "
        "there is no 'other.nmaes' (did you mean 'names'?); expected size, names; "
        "there is no 'sped' (did you mean 'speed'?); expected speed, parts, other"
    )


def test_a_limit_counts_the_rest_and_long_values_are_left_out() -> None:
    with pytest.raises(ValidationError) as caught:
        Whole.model_validate({"speed": "x" * 100, "parts": 1, "a": 1, "b": 2, "c": 3})
    line = explain(caught.value, Whole, limit=2)
    assert line.startswith("speed: Input should be a valid number")
    assert "; parts 1: Input should be" in line
    assert line.endswith("; and 3 more")


VALUES = st.none() | st.integers(-2, 2) | st.lists(st.integers(0, 1), max_size=2)


@given(
    st.dictionaries(st.sampled_from("abc"), VALUES), st.dictionaries(st.sampled_from("abc"), VALUES)
)
def test_settings_differ_where_their_values_do(then: dict, now: dict) -> None:
    different = {name for name in "abc" if then.get(name) != now.get(name)}
    assert {line[0] for line in differing_settings(then, now)} == different
    tuples = {name: tuple(v) if isinstance(v, list) else v for name, v in then.items()}
    assert not differing_settings(then, tuples)
    assert all(line.startswith("x ") for line in differing_settings(then, now, prefix="x "))


def test_a_name_unlike_all_others_has_no_suggestion() -> None:
    assert did_you_mean("lr", ["skip", "warmup"]) == ""
    assert did_you_mean("warm", ["skip", "warmup"]) == " (did you mean 'warmup'?)"


def test_what_is_no_plain_value_differs_and_long_values_are_cut() -> None:
    now = {"a": 1, "b": [1, 2], "c": 0.5}
    then = {"a": torch.zeros(3), "b": [torch.zeros(2), 2], "c": [0] * 5000, "d\x1b": "x" * 5000}
    lines = differing_settings(then, now)
    assert [line[0] for line in lines] == ["a", "b", "c", "d"]
    assert all(len(line) < 300 and line.isprintable() for line in lines)

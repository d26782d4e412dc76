"""Numbers for people: rounding laws, and no exponent where a person would write digits."""

import math

from hypothesis import given
from hypothesis import strategies as st

from ela_probe.system.numbers import MISSING, finite_or_none, readable

finite = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12)


@given(finite, st.integers(1, 6))
def test_a_number_is_rounded_to_its_digits_or_to_a_whole_number(value: float, digits: int) -> None:
    text = readable(value, digits=digits)
    error = abs(float(text.replace(",", "")) - value)
    significant = 0.5 * 10.0 ** (math.floor(math.log10(abs(value))) - digits + 1) if value else 0.0
    assert (
        error <= max(significant, 0.5 if abs(value) >= 10 ** (digits - 1) - 0.5 else 0.0) * 1.0001
    )


@given(st.floats(1e-3, 1e12), st.integers(1, 6))
def test_no_number_above_a_thousandth_has_an_exponent(value: float, digits: int) -> None:
    assert "e" not in readable(value, digits=digits)


@given(st.floats(allow_nan=True, allow_infinity=True), st.integers(1, 6))
def test_the_text_is_short(value: float, digits: int) -> None:
    if abs(value) < 1e6 or not math.isfinite(value):
        assert len(readable(value, digits=digits)) <= digits + 9


def test_what_is_not_a_number() -> None:
    assert readable(None) == readable(math.nan) == MISSING
    assert (readable(math.inf), readable(-math.inf)) == ("∞", "−∞")
    assert [finite_or_none(x) for x in (None, math.nan, math.inf, 2)] == [None, None, None, 2.0]


def test_a_thousand_is_written_out() -> None:
    assert [readable(x) for x in (999.4, 999.6, 1032.4, 87336.5)] == [
        "999",
        "1,000",
        "1,032",
        "87,336",
    ]

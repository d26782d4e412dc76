"""Numbers for people (no exponents of large ones, no digits without meaning) and for JSON."""

import math

MISSING = "–"


def readable(value: float | None, *, digits: int = 3) -> str:
    """A number with at most `digits` significant digits, or all digits of its whole part.

    Numbers below 0.001 have an exponent. None and NaN become a dash.

        >>> [readable(x) for x in (0.04567, 12.3456, 1032.4, 1234567.8, 2e-7, 0.0, None)]
        ['0.0457', '12.3', '1,032', '1,234,568', '2e-7', '0', '–']
    """
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    rounded = float(f"{value:.{digits - 1}e}")
    size = abs(rounded)
    if size >= 10.0 ** (digits - 1):
        return f"{value:,.0f}"
    if size == 0 or size >= 1e-3:
        return f"{rounded:.{digits}g}"
    mantissa, exponent = f"{rounded:.{digits - 1}e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"


def finite_or_none(value: float | None) -> float | None:
    """The value as a float; None for NaN and infinity, which JSON can't hold."""
    return float(value) if value is not None and math.isfinite(value) else None


def counted(count: int, what: str) -> str:
    """A number of things, in the singular where it is one.

    >>> counted(1, "epoch"), counted(1200, "sample")
    ('1 epoch', '1,200 samples')
    """
    return f"{count:,} {what}{'' if count == 1 else 's'}"

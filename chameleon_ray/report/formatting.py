"""Numbers as people read them: a standard error gets two digits, and its mean as many decimals."""

from __future__ import annotations

import math

DASH = "–"
MINUS = "\N{MINUS SIGN}"
NORMAL_WIDTH = 3.92


def number(value: float | None, digits: int = 4) -> str:
    """`digits` significant digits, with an exponent only when tiny; a dash for None."""
    if value is None:
        return DASH
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) < 1e-4:
        return _minus(f"{value:.1e}")
    return fixed(value, max(digits - 1 - math.floor(math.log10(abs(value))), 0))


def measured(value: float | None, stderr: float | None) -> str:
    """mean ± standard error; the mean alone where there is no error."""
    if value is None or stderr is None or not math.isfinite(stderr) or stderr <= 0:
        return number(value)
    decimals = error_decimals(stderr)
    return f"{fixed(value, decimals)} ± {fixed(stderr, decimals)}"


def error_decimals(stderr: float) -> int:
    """Decimals that show two digits of a standard error, at most six."""
    return min(max(1 - math.floor(math.log10(stderr)), 0), 6) if stderr > 0 else 6


def interval_decimals(low: float, high: float) -> int:
    """Decimals that show two digits of the standard error that a 95 % interval of a normal law of this width would have."""
    return error_decimals((high - low) / NORMAL_WIDTH)


def fixed(value: float, decimals: int) -> str:
    """A number with so many decimals, thousands separated."""
    return _minus(f"{round(value, decimals) + 0.0:,.{decimals}f}")


def count(value: int) -> str:
    """An integer with thousands separated."""
    return f"{value:,}"


def power(value: float) -> str:
    """A large quantity such as FLOPs, three digits with an exponent."""
    return f"{value:.2e}" if value else "0"


def ratio(value: float | None) -> str:
    """How many times: three significant digits; 0 and 1 as they are."""
    return DASH if value is None else number(value, 3) if value >= 0.001 or value == 0 else "< 0.001"


def duration(seconds: float) -> str:
    """Seconds, and hours and minutes when there are many."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def plural(quantity: int, noun: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{quantity} {noun}" if quantity == 1 else f"{quantity} {noun}s"


def _minus(text: str) -> str:
    return text.replace("-", MINUS)

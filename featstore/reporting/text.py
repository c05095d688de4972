"""Numbers as people write them, a dash where there is none; and names that fit."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from markupsafe import Markup, escape

DASH = "–"
_BREAK = r"(?<=[-_/@:=])(?=\w)|(?<=\w)(?=\+)"  # where a name may go on in a new line


def percent(value: float) -> str:
    """A score as a percentage without its sign: 0.8421 -> 84.2."""
    return f"{100 * value:.1f}" if np.isfinite(value) else DASH


def signed(value: float) -> str:
    """A difference of scores in points: -0.012 -> −1.2."""
    return f"{round(100 * value, 1) + 0:+.1f}".replace("-", "−") if np.isfinite(value) else DASH


def coefficient(value: float) -> str:
    """A coefficient of correlation with two decimals."""
    return f"{round(value, 2) + 0:.2f}".replace("-", "−") if np.isfinite(value) else DASH


def signed_coefficient(value: float) -> str:
    """A difference of coefficients: -0.5 -> −0.50."""
    return f"{round(value, 2) + 0:+.2f}".replace("-", "−") if np.isfinite(value) else DASH


def tenths(value: float) -> str:
    """A number with one decimal."""
    return f"{value:.1f}" if np.isfinite(value) else DASH


def probability(value: float) -> str:
    """A p-value with two digits: 0.0238 -> .024; what is below .001 is said to be so."""
    if not np.isfinite(value):
        return DASH
    return "< .001" if value < 0.001 else f"{value:.2g}".replace("0.", ".", 1)


def count(value: float) -> str:
    """A whole number with its thousands apart: 10000 -> 10,000."""
    return f"{value:,.0f}" if np.isfinite(value) else DASH


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    if not np.isfinite(seconds):
        return DASH
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    if seconds < 0.01:
        return f"{1000 * seconds:.1f} ms"
    return f"{seconds:.{2 if seconds < 1 else 1 if seconds < 10 else 0}f} s"


def breakable(name: str) -> Markup:
    """A name as HTML with the places where it may go on in a new line."""
    return Markup(re.sub(_BREAK, "<wbr>", str(escape(name))))


def on_lines(name: str, width: int) -> str:
    """A name in lines of at most `width` characters, as far as it may be broken."""
    lines = [""]
    for part in re.split(_BREAK, name):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


FILTERS: dict[str, Callable[[Any], str]] = {
    "breakable": breakable,
    "percent": percent,
    "signed": signed,
    "r": coefficient,
    "signed_r": signed_coefficient,
    "tenths": tenths,
    "count": count,
    "p": probability,
    "time": duration,
}
"""By the names that templates know them by."""

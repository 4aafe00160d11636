"""The only place that formats and rounds numbers for people. Stored values are never rounded."""

import math
import re
from collections.abc import Callable

KIB, MIB, GIB = 1024, 1024**2, 1024**3
_SIZE_UNITS = {"b": 1, "kib": KIB, "mib": MIB, "gib": GIB, "kb": 1000, "mb": 1000**2, "gb": 1000**3}

UNKNOWN = "n/a"
_NUMBER = re.compile(r"(-?[\d,]+)(\.\d+)?( \w+)?")

OnProgress = Callable[[int, int], None]
"""is told (done, in all) while something runs"""


def counted(count: int, noun: str) -> str:
    """``1 rung``, ``2 rungs``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def two_digits(count: int) -> int:
    """The count rounded so far, of something that is itself uncertain."""
    return round(count, 2 - len(str(count)))


def parse_bytes(text: str) -> int:
    """Bytes of a size such as ``2GiB``, ``1500MiB`` or ``2GB``. Raises ValueError on anything else."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if not match or match[2].lower() not in _SIZE_UNITS:
        raise ValueError(f"found {text!r}, expected a size with its unit such as 2GiB, 1500MiB or 2GB")
    return int(float(match[1]) * _SIZE_UNITS[match[2].lower()])


def parse_points(text: str) -> float:
    """Percentage points of a margin such as ``1pt``, ``1.5pt`` or ``1``. Raises ValueError on anything else."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(?:pt|pts|points?)?\s*", text)
    if not match:
        raise ValueError(f"found {text!r}, expected percentage points such as 1pt or 0.5pt")
    return float(match[1])


def parse_percent(text: str) -> float:
    """Per cent such as ``99%`` or ``99``. Raises ValueError on anything else, and on a share such as ``0.99``."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(%?)\s*", text)
    if not match:
        raise ValueError(f"found {text!r}, expected per cent such as 99% or 98.5%")
    if float(match[1]) > 100:
        raise ValueError(f"found {text!r}, expected no more than 100%")
    if float(match[1]) <= 1 and not match[2]:
        raise ValueError(f"found {text!r}, which may mean {100 * float(match[1]):g}% or {match[1]}%; write the % sign")
    return float(match[1])


def supported(value: str, low: str, high: str) -> tuple[str, str, str]:
    """Three numbers that are printed in one unit, with no more digits than their interval supports.

    The Particle Data Group's rule (Review of Particle Physics, Introduction, 5.3), for half the interval's width: two
    digits if its first three are 100 to 354, else one. No end of an interval becomes 0 that isn't. Numbers with a sign
    are differences, which are read against a margin: they keep all digits.
    """
    found = [_NUMBER.fullmatch(text) for text in (value, low, high)]
    if not all(found) or len({one[3] for one in found if one}) > 1 or any(text[0] in "+-" for text in (value, high)):
        return value, low, high
    numbers = [float((one[1] + (one[2] or "")).replace(",", "")) for one in found if one]
    half = (numbers[2] - numbers[1]) / 2
    if half <= 0:
        return value, low, high
    power = math.floor(math.log10(half))
    digits = (1 if round(half / 10**power, 2) <= 3.54 else 0) - power
    while any(number and not round(number, digits) for number in numbers):
        digits += 1
    shown = max(0, min(digits, max(len(one[2] or ".") - 1 for one in found if one)))
    texts = [f"{round(number, min(digits, shown)):,.{shown}f}" for number in numbers]
    suffix = (found[0][3] or "") if found[0] else ""
    return texts[0] + suffix, texts[1] + suffix, texts[2] + suffix


def points_text(points: float) -> str:
    """A margin in words: ``1 point``, ``0.5 points``."""
    return f"{points:g} point{'' if points == 1 else 's'}"


def _or_unknown(format_value: Callable[[float], str]) -> Callable[[float | None], str]:
    return lambda value: UNKNOWN if value is None else format_value(value)


def _format_bytes(value: float) -> str:
    if abs(value) >= GIB:
        return f"{value / GIB:.2f} GiB"
    return f"{value / MIB:.1f} MiB" if abs(value) >= MIB or not value else f"{value / KIB:.1f} KiB"


def _format_seconds(value: float) -> str:
    if abs(value) < 0.1:
        return f"{value * 1000:.2f} ms"
    if abs(value) < 120:
        return f"{value:.3g} s"
    minutes, seconds = divmod(round(value), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {seconds} s"


def format_left(seconds: float) -> str:
    """Time that is left, as exactly as it is known: ``40 s``, ``12 min``, ``3 h``, ``3.5 h``."""
    if seconds < 90:
        return f"{10 * math.ceil(seconds / 10)} s"
    return f"{round(seconds / 60)} min" if seconds < 90 * 60 else f"{round(seconds / 1800) / 2:g} h"


format_bytes = _or_unknown(_format_bytes)
format_seconds = _or_unknown(_format_seconds)
format_mib = _or_unknown(lambda value: f"{value / MIB:.1f}")
format_percent = _or_unknown(lambda value: f"{value:.2f}")
format_points = _or_unknown(lambda value: f"{value:+.2f}")
format_rate = _or_unknown(lambda value: f"{value:.4f}")
format_count = _or_unknown(lambda value: f"{value:,.0f}")
format_raw = _or_unknown(lambda value: f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}")
format_s = _or_unknown(lambda value: f"{value:.4f}")
format_ms = _or_unknown(lambda value: f"{value * 1000:.2f}")
format_ratio = _or_unknown(lambda value: f"{value:.4f}")

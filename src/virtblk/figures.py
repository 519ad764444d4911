"""Figures as a person reads them: counts and latencies in three digits, with the unit that fits. Imports nothing."""

from __future__ import annotations


def si(value: float | None, digits: int = 3) -> str:
    """A count in three figures: 1.23M, 45.6k, 789; `-` for None."""
    if value is None:
        return "-"
    if isinstance(value, int) and abs(value) < 1000:
        return str(value)
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= factor * 0.9995:
            return f"{_figures(value / factor, digits)}{unit}"
    return _figures(value, digits)


def duration(nanoseconds: float | None) -> str:
    """A latency in three figures with its unit: 812ns, 12.3us, 4.56ms, 1.2s; `-` for None."""
    if nanoseconds is None:
        return "-"
    for unit, factor in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if nanoseconds >= factor * 0.9995:
            return f"{_figures(nanoseconds / factor, 3)}{unit}"
    return f"{nanoseconds:.0f}ns"


def _figures(value: float, digits: int) -> str:
    whole = len(str(int(float(f"{abs(value):.{digits}g}"))))  # as it will be rounded: 9.999 has two
    return f"{value:.{max(0, digits - whole)}f}"

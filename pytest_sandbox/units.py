"""Sizes and times as text for people."""

from __future__ import annotations

__all__ = ["count", "decimal_size", "duration", "mib", "seconds", "size"]

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_SPANS = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def size(count: float | None) -> str:
    """Return a number of bytes in its largest unit, as ``docker stats`` prints it.

    ``"64MiB"``, ``"1.5GiB"``; ``"-"`` for None.
    """
    if count is None:
        return "-"
    unit = _UNITS[0]
    for unit in _UNITS:
        if count < 1024 or unit == _UNITS[-1]:
            break
        count /= 1024
    return f"{count:.4g}{unit}"


def decimal_size(count: float) -> str:
    """Return a number of bytes in powers of 1000, as docker prints the sizes of images.

    ``"7.8MB"``; three digits.
    """
    unit = "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.3g}{unit}"


def mib(count: int | None) -> str:
    """Return a number of bytes in MiB, with one decimal unless it is whole.

    ``"64 MiB"``, ``"1536.5 MiB"``; ``"unknown"`` for None.
    """
    if count is None:
        return "unknown"
    return f"{count / (1 << 20):.1f} MiB" if count % (1 << 20) else f"{count >> 20} MiB"


def duration(span: float) -> str:
    """Return a time in whole numbers of its largest unit: ``"12 seconds"``, ``"3 hours"``."""
    length, unit = next((one for one in _SPANS if span >= one[0]), _SPANS[-1])
    number = int(span // length)
    return f"{number} {unit}{'' if number == 1 else 's'}"


def seconds(value: float | None) -> str:
    """Return a time with milliseconds: ``"0.250 s"``; ``"unknown"`` for None."""
    return "unknown" if value is None else f"{value:.3f} s"


def count(value: int | None) -> str:
    """Return a count, or ``"unknown"`` for None."""
    return "unknown" if value is None else str(value)

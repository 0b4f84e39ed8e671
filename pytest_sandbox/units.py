"""Sizes and times as text for people."""

from __future__ import annotations

__all__ = ["duration", "mib", "size"]

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


def mib(count: int | None) -> str:
    """Return a number of bytes in MiB, with one decimal unless it is whole.

    ``"64 MiB"``, ``"1536.5 MiB"``; ``"unknown"`` for None.
    """
    if count is None:
        return "unknown"
    return f"{count / (1 << 20):.1f} MiB" if count % (1 << 20) else f"{count >> 20} MiB"


def duration(seconds: float) -> str:
    """Return a time in whole numbers of its largest unit: ``"12 seconds"``, ``"3 hours"``."""
    length, unit = next((span for span in _SPANS if seconds >= span[0]), _SPANS[-1])
    count = int(seconds // length)
    return f"{count} {unit}{'' if count == 1 else 's'}"

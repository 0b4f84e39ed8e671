"""Numbers with their units, as reports show them."""

from __future__ import annotations

__all__ = ["count", "mib", "seconds"]


def mib(size: int | None) -> str:
    """Return a size in bytes as MiB, with a decimal unless it is a whole number."""
    if size is None:
        return "unknown"
    return f"{size / (1 << 20):.1f} MiB" if size % (1 << 20) else f"{size >> 20} MiB"


def seconds(value: float | None) -> str:
    """Return a duration with milliseconds."""
    return "unknown" if value is None else f"{value:.3f} s"


def count(value: int | None) -> str:
    """Return a count."""
    return "unknown" if value is None else str(value)

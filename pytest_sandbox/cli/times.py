"""Times as docker prints them, in UTC."""

from __future__ import annotations

from datetime import UTC, datetime

__all__ = ["date", "rfc3339"]


def date(when: float) -> str:
    """Return seconds since the epoch as in lists: ``2026-01-02 03:04:05 +0000 UTC``.

    Raises ValueError and OverflowError for years that :mod:`datetime` does not have.
    """
    return f"{datetime.fromtimestamp(when, UTC):%F %T %z} UTC"


def rfc3339(when: float) -> str:
    """Return seconds since the epoch as in JSON: ``2026-01-02T03:04:05.000000Z``."""
    return datetime.fromtimestamp(when, UTC).isoformat(timespec="microseconds")[:-6] + "Z"

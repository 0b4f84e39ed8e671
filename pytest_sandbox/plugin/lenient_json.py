"""JSON of whatever a test has made."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["dumps", "safe_repr"]

#: Nesting beyond which values are sent as their repr(); less than schema.MAX_DEPTH.
_MAX_DEPTH = 80


def dumps(value: Any) -> bytes:
    """Return JSON; values that JSON lacks become their repr()."""
    try:
        return _ENCODER.encode(value).encode("utf-8", "surrogatepass")
    except (TypeError, ValueError, RecursionError):  # a key that is not a string, a cycle
        return _ENCODER.encode(_as_json(value, 0)).encode("utf-8", "surrogatepass")


def _as_json(value: Any, depth: int) -> Any:
    if depth < _MAX_DEPTH:
        if isinstance(value, dict):
            return {
                key if isinstance(key, str) else safe_repr(key): _as_json(one, depth + 1)
                for key, one in value.items()
            }
        if isinstance(value, list | tuple):
            return [_as_json(one, depth + 1) for one in value]
        if value is None or type(value) in {str, int, float, bool}:
            return value
    return safe_repr(value)


def safe_repr(value: object) -> str:
    """Return ``repr(value)``, or the name of its class if that raises."""
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - an object of the suite's
        return f"<{type(value).__qualname__}>"


_ENCODER = json.JSONEncoder(default=safe_repr, ensure_ascii=False)

"""Arrays of numbers as text in JSON messages: one string is cheaper to write, to check and to read
than an array of 100,000 numbers, which a benchmark or the coverage of a large file may have.
"""

from __future__ import annotations

import base64
from array import array
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["pack", "unpack"]


def pack(typecode: Literal["d", "i"], numbers: Iterable[float]) -> str:
    """Return numbers as base64; ``typecode`` is that of :class:`array.array`."""
    packed: Any = array(typecode, numbers)
    return base64.b64encode(packed).decode()


def unpack(typecode: Literal["d", "i"], text: str) -> array[Any]:
    """Return the numbers that :func:`pack` was given.

    Raises :class:`ValueError` for text that it did not write.
    """
    return array(typecode, base64.b64decode(text, validate=True))

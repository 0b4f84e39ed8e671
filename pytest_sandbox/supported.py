"""Whether this operating system and this Python support containers at all.

This module imports nothing that only Linux has.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from pytest_sandbox.errors import UnsupportedError

__all__ = ["lacking", "require", "stand_in"]

_REMEDY = (
    "It takes Linux 5.12 or newer: run it in a Linux virtual machine, or the tests without "
    "--sandbox."
)


def lacking() -> str:
    """Return the missing feature in words, or an empty string if nothing is missing."""
    if sys.platform != "linux":
        return f"a container on {sys.platform}"
    return "" if hasattr(os, "memfd_create") else "a container by a Python without os.memfd_create"


def require() -> None:
    """Raise :class:`UnsupportedError` if containers are not supported."""
    if missing := lacking():
        raise UnsupportedError(missing, _REMEDY)


class _Refusing(type):
    """The type of classes that can be imported, and raise :class:`UnsupportedError` on use."""

    def __call__(cls, *_arguments: object, **_keywords: object) -> NoReturn:
        raise UnsupportedError(lacking(), _REMEDY)

    def __getattr__(cls, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name)
        raise UnsupportedError(lacking(), _REMEDY)


def stand_in(name: str) -> type:
    """Return a replacement for a class that needs Linux."""
    return _Refusing(name, (), {"__doc__": f"{name}, which this operating system cannot provide."})

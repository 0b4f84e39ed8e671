"""Whether containers can exist on this operating system at all; imports nothing that only Linux
has.
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
    """Return what this operating system or this Python lacks, in words; empty where nothing is."""
    if sys.platform != "linux":
        return f"a container on {sys.platform}"
    return "" if hasattr(os, "memfd_create") else "a container by a Python without os.memfd_create"


def require() -> None:
    """Raise :class:`UnsupportedError` where there can be no containers."""
    if missing := lacking():
        raise UnsupportedError(missing, _REMEDY)


class _Refusing(type):
    """A class that can be imported and named, and raises :class:`UnsupportedError` when it is
    used.
    """

    def __call__(cls, *_arguments: object, **_keywords: object) -> NoReturn:
        raise UnsupportedError(lacking(), _REMEDY)

    def __getattr__(cls, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name)
        raise UnsupportedError(lacking(), _REMEDY)


def stand_in(name: str) -> type:
    """Return a class to be imported in place of one that needs Linux."""
    return _Refusing(name, (), {"__doc__": f"{name}, which this operating system cannot provide."})

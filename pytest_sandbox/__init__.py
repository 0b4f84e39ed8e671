"""Containers for tests: namespaces, limits and a throwaway layer, in milliseconds and without a
daemon.

The names below are loaded when they are first used, so that importing the library costs next to
nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_sandbox.container.container import Container, ContainerFactory
    from pytest_sandbox.container.network import Network
    from pytest_sandbox.errors import (
        ContainerStopped,
        ImageError,
        OutOfMemory,
        SandboxError,
        SettingsError,
        SetupError,
        UnsupportedError,
    )
    from pytest_sandbox.image.image import Image
    from pytest_sandbox.outcome import Change, Exited, OOMKilled, Signaled, Stats, TimedOut
    from pytest_sandbox.settings import Settings
    from pytest_sandbox.settings.kwargs import SettingsKwargs

__all__ = [
    "Change",
    "Container",
    "ContainerFactory",
    "ContainerStopped",
    "Exited",
    "Image",
    "ImageError",
    "Network",
    "OOMKilled",
    "OutOfMemory",
    "SandboxError",
    "Settings",
    "SettingsError",
    "SettingsKwargs",
    "SetupError",
    "Signaled",
    "Stats",
    "TimedOut",
    "UnsupportedError",
]

_HOMES = {
    "container.container": ("Container", "ContainerFactory"),
    "container.network": ("Network",),
    "errors": (
        "ContainerStopped",
        "ImageError",
        "OutOfMemory",
        "SandboxError",
        "SettingsError",
        "SetupError",
        "UnsupportedError",
    ),
    "image.image": ("Image",),
    "settings.kwargs": ("SettingsKwargs",),
    "outcome": ("Change", "Exited", "OOMKilled", "Signaled", "Stats", "TimedOut"),
    "settings": ("Settings",),
}


def _load(home: str, name: str) -> object:
    """Load a name; what needs Linux is a class that refuses to be used elsewhere, so that importing
    it is harmless.
    """
    from pytest_sandbox import supported

    if supported.lacking() and home.startswith(("container", "image")):
        return supported.stand_in(name)
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            value = globals()[name] = _load(home, name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Containers for tests: namespaces, limits and a throwaway layer, in milliseconds and without a
daemon.

The public names are imported on first use, so that ``import pytest_sandbox`` is fast.
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
        ServiceError,
        ServiceTimeout,
        SettingsError,
        SetupError,
        UnsupportedError,
    )
    from pytest_sandbox.image.image import Image
    from pytest_sandbox.outcome import Change, Exited, OOMKilled, Signaled, Stats, TimedOut
    from pytest_sandbox.settings.kwargs import SettingsKwargs
    from pytest_sandbox.settings.settings import Settings

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
    "ServiceError",
    "ServiceTimeout",
    "Settings",
    "SettingsError",
    "SettingsKwargs",
    "SetupError",
    "Signaled",
    "Stats",
    "TimedOut",
    "UnsupportedError",
]

#: Module -> the public names that it defines.
_MODULES = {
    "container.container": ("Container", "ContainerFactory"),
    "container.network": ("Network",),
    "errors": (
        "ContainerStopped",
        "ImageError",
        "OutOfMemory",
        "SandboxError",
        "ServiceError",
        "ServiceTimeout",
        "SettingsError",
        "SetupError",
        "UnsupportedError",
    ),
    "image.image": ("Image",),
    "settings.kwargs": ("SettingsKwargs",),
    "outcome": ("Change", "Exited", "OOMKilled", "Signaled", "Stats", "TimedOut"),
    "settings.settings": ("Settings",),
}


def _load(module: str, name: str) -> object:
    """Import a name. On another system than Linux, a class that needs Linux is replaced with one
    that raises an error when it is used, so that the import is harmless.
    """
    from pytest_sandbox import supported

    if supported.lacking() and module.startswith(("container", "image")):
        return supported.stand_in(name)
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)


def __getattr__(name: str) -> object:
    for module, names in _MODULES.items():
        if name in names:
            value = globals()[name] = _load(module, name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

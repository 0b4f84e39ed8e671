"""The error tree: what a caller asked for wrongly, or what this host cannot give.

What a process inside a container does (an exit code, a signal, a kill for memory, an overrun) is
never an error of ours: it is a value of :mod:`pytest_sandbox.outcome`, or what :mod:`subprocess`
would raise.
"""

from __future__ import annotations

import subprocess
from typing import Self

__all__ = [
    "ContainerStopped",
    "ImageError",
    "OutOfMemory",
    "SandboxError",
    "SettingsError",
    "SetupError",
    "UnsupportedError",
]


class SandboxError(Exception):
    """The base of all errors of this library; its text ends with what to do about it."""


class SettingsError(SandboxError, ValueError):
    """A setting has a name or a value that is not understood.

    ``key``, ``value`` and ``accepted`` (the accepted form, in words) are attributes, and stand in
    the text.
    """

    def __init__(self, key: str, value: object, accepted: str) -> None:
        super().__init__(key, value, accepted)
        self.key = key
        self.value = value
        self.accepted = accepted

    def __str__(self) -> str:
        return f"{self.key}={self.value!r} is not valid; accepted: {self.accepted}"


class UnsupportedError(SandboxError):
    """This host cannot enforce ``feature``, which was asked for; ``remedy`` says what would make it
    able to.
    """

    def __init__(self, feature: str, remedy: str) -> None:
        super().__init__(feature, remedy)
        self.feature = feature
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.feature} is not supported here. {self.remedy}"


class ImageError(SandboxError):
    """An image cannot be found, fetched, verified or unpacked."""


class SetupError(SandboxError):
    """A step of making a container failed: ``step`` names it.

    ``reason`` says what the kernel answered, ``remedy`` what helps (empty: doctor).
    """

    def __init__(self, step: str, reason: str = "", remedy: str = "") -> None:
        super().__init__(step, reason, remedy)
        self.step = step
        self.reason = reason
        self.remedy = remedy

    def __str__(self) -> str:
        said = f"the container could not be made: {self.step}"
        if self.reason:
            said += f": {self.reason}"
        return (
            f"{said}. {self.remedy or 'Run `pytest-sandbox doctor` to see what this host can do.'}"
        )


class ContainerStopped(SandboxError):
    """The container is no longer running, so nothing can be done in it."""

    @classmethod
    def ended(cls, which: str = "") -> Self:
        """Return the error for a container, ``which`` by its id, that is found to have ended while
        something was done in it.
        """
        return cls(
            f"the container {which} has ended. Make a new one."
            if which
            else "the container has ended. Make a new one."
        )


class OutOfMemory(subprocess.CalledProcessError):
    """What ``check=True`` raises when the command's container had a process killed for memory.

    ``memory_limit`` and ``memory_peak`` are in bytes.
    """

    def __init__(
        self,
        returncode: int,
        cmd: object,
        output: object = None,
        stderr: object = None,
        *,
        memory_limit: int | None = None,
        memory_peak: int | None = None,
    ) -> None:
        super().__init__(returncode, cmd, output, stderr)  # type: ignore[arg-type]
        self.memory_limit = memory_limit
        self.memory_peak = memory_peak

    def __str__(self) -> str:
        return (
            f"{super().__str__()[:-1]} after the kernel killed for memory "
            f"(limit {_mib(self.memory_limit)}, peak {_mib(self.memory_peak)}); raise memory=, or "
            "use less."
        )


def _mib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / (1 << 20):.0f} MiB"

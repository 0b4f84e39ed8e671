"""The exceptions of this library: invalid requests, and requests that this host cannot fulfil.

What a process inside a container does (an exit status, a signal, a kill for memory, a timeout) is
none of these: it is a value of :mod:`pytest_sandbox.outcome`, or an exception of
:mod:`subprocess`.
"""

from __future__ import annotations

import subprocess
from typing import Self

from pytest_sandbox.units import mib

__all__ = [
    "ContainerStopped",
    "ImageError",
    "OutOfMemory",
    "SandboxError",
    "ServiceError",
    "ServiceTimeout",
    "SettingsError",
    "SetupError",
    "UnsupportedError",
]


class SandboxError(Exception):
    """The base class of this library's exceptions. The text ends with what to do."""


class SettingsError(SandboxError, ValueError):
    """A setting has an unknown name or an invalid value.

    ``key``, ``value`` and ``accepted`` (the accepted form, in words) are attributes and part of the
    text.
    """

    def __init__(self, key: str, value: object, accepted: str) -> None:
        super().__init__(key, value, accepted)
        self.key = key
        self.value = value
        self.accepted = accepted

    def __str__(self) -> str:
        return f"{self.key}={self.value!r} is not valid; accepted: {self.accepted}"


class UnsupportedError(SandboxError):
    """This host cannot enforce the requested ``feature``; ``remedy`` says how to change that."""

    def __init__(self, feature: str, remedy: str) -> None:
        super().__init__(feature, remedy)
        self.feature = feature
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.feature} is not supported here. {self.remedy}"


class ImageError(SandboxError):
    """An image cannot be found, fetched, verified or unpacked."""


class SetupError(SandboxError):
    """A container could not be created: ``step`` failed.

    ``reason`` is the error of the kernel, ``remedy`` says what to do. If ``remedy`` is empty, the
    text suggests ``pytest-sandbox doctor``.
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
    """The container is not running any more."""

    @classmethod
    def ended(cls, which: str = "") -> Self:
        """Return the error for a container that ended during an operation; ``which`` is its id."""
        name = f"the container {which}" if which else "the container"
        return cls(f"{name} has ended. Make a new one.")


class ServiceError(SandboxError):
    """A service, or what a container was waited for, is not ready and will not become so.

    ``name`` is what was waited for, ``reason`` what was found, ``returncode`` the exit status of a
    command that has ended (negative for a signal, else None), ``log`` the last lines of its output.
    """

    def __init__(
        self, name: str, reason: str, returncode: int | None = None, log: str = ""
    ) -> None:
        super().__init__(name, reason, returncode, log)
        self.name = name
        self.reason = reason
        self.returncode = returncode
        self.log = log

    def __str__(self) -> str:
        said = f"{self.name} is not ready: {self.reason}."
        return f"{said} Its last output:\n{self.log}" if self.log else f"{said} It has no output."


class ServiceTimeout(ServiceError, TimeoutError):
    """A service was not ready in time. Raise ``timeout=``, or correct what it is waited for."""


class OutOfMemory(subprocess.CalledProcessError):
    """A command failed with ``check=True``, and the kernel killed a process of its container for
    memory.

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
            f"{super().__str__()[:-1]} after the kernel killed a process for memory "
            f"(limit {mib(self.memory_limit)}, peak {mib(self.memory_peak)}); raise memory=, or "
            "use less."
        )

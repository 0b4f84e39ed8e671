"""The exceptions for the errors that the launcher sends (:class:`~protocol.ErrorCode`)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from pytest_sandbox.errors import ContainerStopped, SandboxError, UnsupportedError
from pytest_sandbox.runtime.protocol import ErrorCode

if TYPE_CHECKING:
    from pytest_sandbox.runtime.protocol import Message

__all__ = ["ULIMIT_REMEDY", "failed_start", "raise_for"]

ULIMIT_REMEDY = "Start pytest with a higher hard limit (ulimit -H), or ask for less."
_DISK_REMEDY = (
    "It takes loop devices and mkfs.ext4 (Debian: e2fsprogs): install them, or use "
    'storage="memory", which needs neither.'
)


def raise_for(answer: Message, container: str = "") -> None:
    """Raise the exception for an answer that is an error; ``container`` is the id it is about."""
    if answer["op"] == "error":
        raise _exception(answer, container)


def _exception(answer: Message, container: str) -> SandboxError:
    match ErrorCode(answer["code"]):
        case ErrorCode.ENDED:
            return ContainerStopped.ended(container)
        case ErrorCode.UNSUPPORTED:
            return UnsupportedError(answer["feature"], answer["remedy"])
        case ErrorCode.ULIMIT_TOO_HIGH:
            return UnsupportedError(f"such a ulimit ({answer['reason']})", ULIMIT_REMEDY)
        case ErrorCode.DISK_LIMIT_UNAVAILABLE:
            return UnsupportedError(f'disk= with storage="disk" ({answer["reason"]})', _DISK_REMEDY)
        case ErrorCode.PROC_COVERED:
            from pytest_sandbox.host import files

            return UnsupportedError("a container in this container", files.COVERED)
        case ErrorCode.NO_USER_NAMESPACE:
            from pytest_sandbox import host

            # Raises UnsupportedError with the reason that it finds; else the step's own is told.
            host.require("user namespace", "a container without root")
    return _step_failed(answer)


def _step_failed(answer: Message) -> SandboxError:
    """Return the error for a step that failed: what denies it around this process, if anything
    does, else what the kernel said.
    """
    from pytest_sandbox.host import diagnosis

    return diagnosis.explain(answer["step"], answer["reason"].strip(), answer["errno"])


def failed_start(error: OSError) -> SandboxError:
    """Return the error for a launcher that could not be started."""
    from pytest_sandbox.host import diagnosis

    reason = f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
    return diagnosis.explain("start the launcher", reason, error.errno or errno.EIO)

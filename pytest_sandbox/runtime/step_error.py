"""The error of a step that creates a container, and the message that carries it to the client."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_sandbox.errors import UnsupportedError
from pytest_sandbox.runtime.protocol import ErrorCode

if TYPE_CHECKING:
    from pytest_sandbox.runtime.protocol import Message

__all__ = ["StepError", "error_message"]


class StepError(OSError):
    """A step of creating a container failed; ``code`` tells the client which exception it is."""

    def __init__(
        self,
        step: str,
        errno: int | None,
        reason: str,
        filename: str | None = None,
        *,
        code: ErrorCode = ErrorCode.STEP_FAILED,
    ) -> None:
        super().__init__(errno, reason, filename)
        self.step = step
        self.code = code


def error_message(error: Exception, step: str) -> Message:
    """Return the message ``error`` for an exception; ``step`` names what failed, where the
    exception does not say.
    """
    if isinstance(error, UnsupportedError):
        return {
            "op": "error",
            "code": ErrorCode.UNSUPPORTED,
            "feature": error.feature,
            "remedy": error.remedy,
        }
    code, reason, number = ErrorCode.STEP_FAILED, f"{type(error).__name__}: {error}", 0
    if isinstance(error, StepError):
        step, code = error.step, error.code
    if isinstance(error, OSError):
        number = error.errno or 0
        reason = error.strerror or str(error)
        reason += f": {error.filename}" if error.filename else ""
    else:
        import traceback  # the client imports this file, and never needs it

        traceback.print_exception(error)  # a bug of ours: PYTEST_SANDBOX_DEBUG shows it
    return {"op": "error", "code": code, "step": step, "reason": reason, "errno": number}

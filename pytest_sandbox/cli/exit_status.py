"""The one place where errors become a line on stderr and an exit status, as docker's."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from pytest_sandbox.errors import SandboxError
from pytest_sandbox.printable import TEXT, printable

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "CANNOT_EXECUTE",
    "NOT_FOUND",
    "OUR_ERROR",
    "complain",
    "guarded",
    "open_standard_streams",
    "say",
    "status_of",
]

OUR_ERROR = 125
CANNOT_EXECUTE = 126
NOT_FOUND = 127
_SIGNALED = 128


def open_standard_streams() -> None:
    """Open /dev/null in place of each standard stream that is closed, as in the shell's
    ``pytest-sandbox ps >&-``.

    Python leaves ``sys.stdout`` None then, and the next file that is opened gets the descriptor.
    """
    for fd, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(fd)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor, so this one
            os.set_inheritable(null, True)
        if getattr(sys, name) is None:
            # It stays open.
            setattr(sys, name, open(fd, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def say(text: str) -> None:
    """Write a line on stderr, if anybody reads it."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def complain(text: object) -> None:
    """Say something on stderr that is not the command's."""
    say(f"pytest-sandbox: {printable(text, TEXT)}")


def status_of(returncode: int) -> int:
    """Turn :mod:`subprocess`'s return code into a shell's status: 137 for a SIGKILL."""
    return _SIGNALED - returncode if returncode < 0 else returncode


def guarded(do: Callable[[], int], *, debugging: bool = False) -> int:
    """Do it, and return its status; an error becomes one line and 125, or its traceback where
    ``debugging``.
    """
    try:
        status = do()
        if sys.stdout is not None:  # the caller has closed it (``>&-``)
            sys.stdout.flush()
    except SystemExit as end:  # argparse's help, version, and wrong use
        return end.code if isinstance(end.code, int) else 0
    except KeyboardInterrupt:
        return _SIGNALED + signal.SIGINT
    except BrokenPipeError:  # who read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _SIGNALED + signal.SIGPIPE
    except (SandboxError, OSError) as error:
        if debugging:
            raise
        complain(error)
        return OUR_ERROR
    return status

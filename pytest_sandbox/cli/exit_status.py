"""Exit statuses, which are docker's, and the messages of errors on stderr."""

from __future__ import annotations

import os
import signal
import sys
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
    """Open /dev/null in place of each closed standard stream (``pytest-sandbox ps >&-``).

    Otherwise ``sys.stdout`` would be None, and the next file that is opened would be descriptor 1.
    """
    for fd, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(fd)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor, which is fd
            os.set_inheritable(null, True)
        if getattr(sys, name) is None:
            # It stays open until the process exits.
            setattr(sys, name, open(fd, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def say(text: str) -> None:
    """Write a line to stderr; discard it if stderr cannot be written, such as a broken pipe."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        # Python would flush the rest of the buffer at exit, fail again, and exit with 120.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def complain(text: object) -> None:
    """Write a message of ours on stderr."""
    say(f"pytest-sandbox: {printable(text, TEXT)}")


def status_of(returncode: int) -> int:
    """Return a shell's exit status for a return code of :mod:`subprocess`: 137 for SIGKILL."""
    return _SIGNALED - returncode if returncode < 0 else returncode


def guarded(do: Callable[[], int], *, debugging: bool = False) -> int:
    """Call ``do`` and return its status; for an error, print one line and return 125.

    With ``debugging`` the error is raised.
    """
    try:
        status = do()
        if sys.stdout is not None:  # None if it is closed (``>&-``)
            sys.stdout.flush()
    except SystemExit as end:  # by argparse, for --help, --version and errors
        return end.code if isinstance(end.code, int) else 0
    except KeyboardInterrupt:
        return _SIGNALED + signal.SIGINT
    except BrokenPipeError:  # the reader has closed the pipe, such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _SIGNALED + signal.SIGPIPE
    except (SandboxError, OSError) as error:
        if debugging:
            raise
        complain(error)
        return OUR_ERROR
    return status

"""Functions that run with the rights of the process that built a container.

Without root, a container is built in a user namespace, and its files may belong to any UID of that
namespace: this process cannot read them all.
"""

from __future__ import annotations

import json
import os
import threading
import warnings
from typing import TYPE_CHECKING, Any

from pytest_sandbox.errors import SandboxError
from pytest_sandbox.linux import syscall as sc

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["as_builder", "fork_lock", "fork_process"]

__tracebackhide__ = True  # pytest shows the line of the test; --full-trace shows all


def as_builder(builder_fd: int, func: Callable[[], Any]) -> Any:
    """Return the function's value, which JSON can represent, with the rights of the builder.

    ``builder_fd`` is the user namespace in which the container was built: the function runs in a
    fork that joins it. If it is -1, the function runs in this process.

    Raises the function's :class:`OSError`, and :class:`SandboxError` if it fails otherwise.
    """
    if builder_fd < 0:
        return func()
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = fork_process()
    if not pid:
        try:
            sc.setns(builder_fd, sc.CLONE_NEWUSER)
            answer = _answer(func)
            with open(writer, "w", encoding="utf-8") as file:
                json.dump(answer, file)
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as file:
        text = file.read()
    os.waitpid(pid, 0)
    if not text:
        raise SandboxError(
            "this user cannot read what was written in the container. Read it from inside."
        )
    value, error = json.loads(text)
    if error is not None:
        raise OSError(*error)
    return value


def _answer(
    func: Callable[[], Any],
) -> tuple[Any, tuple[int | None, str | None, str | None] | None]:
    """Return the function's value, and the parts of its OSError."""
    try:
        return func(), None
    except OSError as error:
        return None, (error.errno, error.strerror, error.filename)


_forking = threading.RLock()


def _renew_lock() -> None:
    """Replace the lock in a child: a thread that the child does not have may hold it."""
    global _forking  # noqa: PLW0603
    _forking = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)


def fork_lock() -> threading.RLock:
    """Return the lock that a thread holds while it forks, for what belongs to one fork."""
    return _forking


def fork_process() -> int:
    """Fork as :func:`os.fork`, without the warning of Python 3.12 about threads.

    One thread at a time: others' at-fork handlers run in between otherwise, and those of filelock
    refuse that (RuntimeError). Raises :class:`SetupError` if there may be no more processes.
    """
    try:
        if threading.active_count() == 1:
            return os.fork()
        with _forking, warnings.catch_warnings():
            # The child runs one function or one test and ends; it does not need the threads, such
            # as execnet's in a worker of pytest-xdist.
            warnings.simplefilter("ignore", DeprecationWarning)
            return os.fork()
    except BlockingIOError as error:
        from pytest_sandbox.host import diagnosis

        raise diagnosis.no_processes() from error

"""How a process of this one joins a container, and the errors of doing so."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, NoReturn

from pytest_sandbox.errors import ContainerStopped, SetupError, UnsupportedError
from pytest_sandbox.runtime.join import RAISE_ULIMITS, JoinTarget

if TYPE_CHECKING:
    from pytest_sandbox.container.handle import Handle
    from pytest_sandbox.linux.syscall_batch import Failure

__all__ = ["entrance_of", "raise_for"]

__tracebackhide__ = True  # pytest shows the line of the test; --full-trace shows all


def entrance_of(handle: Handle) -> JoinTarget:
    """Return what a process needs to join the container.

    Raises :class:`ContainerStopped` unless the container runs and is not paused.
    """
    handle.ready()
    cgroup = handle.cgroup.fd()
    joins = handle.cgroup.join_paths() if cgroup < 0 else ()
    return JoinTarget(handle.spec, handle.pidfd, joins, cgroup, *handle.user_namespaces())


def raise_for(handle: Handle, failure: Failure) -> NoReturn:
    """Raise the error for a step of joining that failed.

    Raises :class:`UnsupportedError` for a ulimit above the caller's, :class:`ContainerStopped` if
    the container has ended, else :class:`SetupError`.
    """
    if failure.step == RAISE_ULIMITS:
        raise UnsupportedError(
            f"ulimits: {failure.call}",
            "Start pytest with a higher hard limit (ulimit -H), or set a lower one.",
        )
    if failure.errno == errno.ESRCH:
        # An init that is ending loses its namespaces a moment before its pidfd becomes readable.
        raise ContainerStopped.ended(handle.id)
    handle.running()
    raise SetupError(failure.step, str(failure.error().strerror))

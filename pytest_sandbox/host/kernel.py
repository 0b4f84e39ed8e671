"""System calls: there, missing, or denied by somebody's seccomp policy."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from pytest_sandbox.linux import capabilities, seccomp
from pytest_sandbox.linux import syscall as sc

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.host.trial import Trial

__all__ = [
    "FILTERED",
    "is_filtered",
    "remedy_for_call",
    "remedy_for_kernel",
    "try_clone3",
    "try_kernel",
    "try_keyring",
    "try_openat2",
    "try_pidfd",
    "try_seccomp",
]

FILTERED = (
    "A seccomp policy around this process, such as docker's default one, denies it: start the outer container with --privileged, "
    "or with --security-opt seccomp=unconfined."
)
_SECCOMP_MODE_FILTER = 2


def is_filtered() -> bool:
    """Whether a seccomp filter is around this process (PR_GET_SECCOMP(2const))."""
    try:
        return sc.prctl(sc.PR_GET_SECCOMP) == _SECCOMP_MODE_FILTER
    except OSError:
        return True


def remedy_for_call(since: str) -> Callable[[Trial], str]:
    """Return what helps where a system call fails that Linux has since that version."""

    def remedy(trial: Trial) -> str:
        if is_filtered() and trial.errno in {errno.EPERM, errno.EACCES, errno.ENOSYS}:
            return FILTERED
        return f"Use a kernel that has it: Linux {since} or newer, not a stand-in for one."

    return remedy


def try_kernel() -> str:
    """Name the kernel, and see that the machine's system-call numbers are known."""
    system = os.uname()
    if system.sysname != "Linux" or system.machine not in seccomp.MACHINES:
        raise OSError(errno.ENOSYS, f"{system.sysname} {system.release} on {system.machine}")
    return f"{system.sysname} {system.release} on {system.machine}"


def remedy_for_kernel(_trial: Trial) -> str:
    """Return what helps on another system."""
    return f"Run on Linux, on one of: {', '.join(seccomp.MACHINES)}."


def try_pidfd() -> str:
    """Open a descriptor of a process."""
    os.close(os.pidfd_open(os.getpid()))
    return "pidfd_open"


def try_clone3() -> str:
    """Fork by clone3."""
    pid, pidfd = sc.clone3(0)
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(pidfd)
    return "clone3"


def try_openat2() -> str:
    """Open a folder with rules for its resolution."""
    os.close(sc.openat2(".", os.O_PATH, sc.RESOLVE_IN_ROOT))
    return "openat2"


def try_keyring() -> str:
    """Join a new session keyring."""
    sc.join_new_session_keyring()
    return "keyctl"


def try_seccomp() -> str:
    """Load docker's policy."""
    outer = ", below the policy of an outer container" if is_filtered() else ""
    sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
    sc.seccomp_set_filter(seccomp.program(capabilities.DOCKER_DEFAULT))
    return f"docker's default policy loads{outer}"

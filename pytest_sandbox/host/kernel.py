"""System calls: there, missing, or denied by somebody's seccomp policy."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from pytest_sandbox.linux import capabilities, confinement, seccomp
from pytest_sandbox.linux import syscall as sc

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.host.trial import Trial

__all__ = [
    "FILTERED",
    "GVISOR",
    "around",
    "by_profile",
    "denied",
    "is_filtered",
    "remedy_for_call",
    "remedy_for_kernel",
    "remedy_for_profile",
    "try_clone3",
    "try_kernel",
    "try_keyring",
    "try_openat2",
    "try_pidfd",
    "try_profile",
    "try_seccomp",
]

FILTERED = (
    "A seccomp policy around this process, such as docker's default one, denies it: start the "
    "outer container with --privileged, "
    "or with --security-opt seccomp=unconfined."
)
_SECCOMP_MODE_FILTER = 2


GVISOR = (
    "gVisor (runsc) stands in for the kernel, and has not all that a container is made of: start "
    "the outer container with another runtime, such as "
    "--runtime=runc, or run on a machine."
)


def by_profile(trial: Trial) -> str:
    """Return what helps where an AppArmor profile around this process has denied it; empty where
    none has.
    """
    name = confinement.apparmor_profile()
    if not name or trial.errno not in {errno.EACCES, errno.EPERM}:
        return ""
    return (
        f"The AppArmor profile {name} around this process denies it: in docker, start the outer "
        "container with --security-opt apparmor=unconfined; "
        "elsewhere, as root, give the profile what it lacks (capability, mount, umount, "
        "pivot_root, userns), or run outside of it."
    )


def around(trial: Trial) -> str:
    """Return what helps where it was not the kernel that said no, but a stand-in for it or a
    profile around this process; empty otherwise.
    """
    return GVISOR if confinement.is_gvisor() else by_profile(trial)


def denied(trial: Trial) -> str:
    """Return what helps where something around this process said no, a seccomp policy among them;
    empty otherwise.
    """
    if is_filtered() and trial.errno in {errno.EPERM, errno.ENOSYS} and not confinement.is_gvisor():
        return FILTERED
    return around(trial)


def is_filtered() -> bool:
    """Whether a seccomp filter is around this process (PR_GET_SECCOMP(2const))."""
    try:
        return sc.prctl(sc.PR_GET_SECCOMP) == _SECCOMP_MODE_FILTER
    except OSError:
        return True


def remedy_for_call(since: str) -> Callable[[Trial], str]:
    """Return what helps where a system call fails that Linux has since that version."""

    def remedy(trial: Trial) -> str:
        if helps := denied(trial):
            return helps
        return f"Use a kernel that has it: Linux {since} or newer, not a stand-in for one."

    return remedy


def try_kernel() -> str:
    """Name the kernel, and see that the machine's system-call numbers are known."""
    system = os.uname()
    if system.sysname != "Linux" or system.machine not in seccomp.MACHINES:
        raise OSError(errno.ENOSYS, f"{system.sysname} {system.release} on {system.machine}")
    if confinement.is_gvisor():
        raise OSError(errno.ENOSYS, f"gVisor, which answers as {system.sysname} {system.release}")
    return f"{system.sysname} {system.release} on {system.machine}"


def remedy_for_kernel(_trial: Trial) -> str:
    """Return what helps on another system."""
    if confinement.is_gvisor():
        return GVISOR
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
    """Open a directory with rules for its resolution."""
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


def try_profile() -> str:
    """See whether an AppArmor profile confines this process."""
    if name := confinement.apparmor_profile():
        raise OSError(errno.EACCES, f"the AppArmor profile {name} confines this process")
    return "no AppArmor profile confines this process"


def remedy_for_profile(trial: Trial) -> str:
    """Return what takes this process out of its profile."""
    return by_profile(trial).replace("denies it", "may deny what a container is made of")

"""What a payload is left with: the last steps into a container, the same for its init and for a forked test body."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_sandbox.linux import capabilities, seccomp
from pytest_sandbox.linux import syscall as sc

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.launcher.plan import Plan

__all__ = ["lock_down", "prepare"]


def prepare(plan: Plan) -> None:
    """Compute what :func:`lock_down` needs once, while the root is still the host's."""
    capabilities.supported()
    if plan.seccomp:
        seccomp.program(plan.capabilities)


def lock_down(plan: Plan, *, limit: Callable[[int], None] = capabilities.assume) -> None:
    """Give up, for good, all that the plan's payload may not have: its session keyring, capabilities, new privileges, system calls.

    ``limit`` is how the capabilities go: at once, or for init, which still has to switch users, with the next program that is executed.
    """
    sc.join_new_session_keyring()
    if plan.no_new_privileges:
        sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
    if not plan.seccomp:
        limit(plan.capabilities)
        return
    program = seccomp.program(plan.capabilities)
    if plan.no_new_privileges:
        limit(plan.capabilities)
        sc.seccomp_set_filter(program)
    else:  # then loading a filter takes CAP_SYS_ADMIN, which the capabilities' end may take away
        sc.seccomp_set_filter(program)
        limit(plan.capabilities)

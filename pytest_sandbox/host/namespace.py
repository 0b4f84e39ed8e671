"""Namespaces: which of them this user may have, and who says no."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from contextlib import suppress
from ipaddress import IPv4Interface
from typing import TYPE_CHECKING

from pytest_sandbox.host.kernel import denied
from pytest_sandbox.linux import (
    mounts,
    namespaces,
    network_namespace,
    root_check,
    rtnetlink,
    sysctl,
    userns,
)
from pytest_sandbox.linux import syscall as sc
from pytest_sandbox.linux.syscall_batch import SyscallBatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.host.trial import Trial

__all__ = [
    "USES",
    "enter_own_user_namespace",
    "is_root",
    "isolate",
    "remedy_for",
    "remedy_for_bridge",
    "remedy_for_ids",
    "remedy_for_user",
    "run_as_root",
    "trier",
    "try_bridge",
    "try_loopback",
    "try_root",
    "try_subordinate_ids",
    "try_user",
]

#: What each namespace but the user one is for; its flag and its kernel name are below.
USES = {
    "mount": "files of the container's own",
    "pid": "processes of the container's own, which all end with it",
    "network": "ports and interfaces of the container's own",
    "ipc": "System V IPC and message queues of the container's own",
    "uts": "a host name of the container's own",
    "cgroup": "a view of limits that begins at the container",
}
_FLAGS = {
    "mount": (sc.CLONE_NEWNS, "mnt"),
    "pid": (sc.CLONE_NEWPID, "pid"),
    "network": (sc.CLONE_NEWNET, "net"),
    "ipc": (sc.CLONE_NEWIPC, "ipc"),
    "uts": (sc.CLONE_NEWUTS, "uts"),
    "cgroup": (sc.CLONE_NEWCGROUP, "cgroup"),
}
_SUBORDINATE = ("/etc/subuid", "/etc/subgid")


def is_root() -> bool:
    """Whether this process may make containers without a user namespace of its own."""
    return userns.has_capabilities()


def isolate(flags: int) -> None:
    """Give the calling fork new namespaces: by root's right, or below a user namespace of its
    own.
    """
    if not is_root():
        enter_own_user_namespace()
    sc.unshare(flags)


def enter_own_user_namespace() -> None:
    """Become root of a new user namespace.

    In a chroot nobody may make one (unshare(2)); a launcher leaves it first, where it has the
    right.
    """
    with suppress(OSError):
        if root_check.is_chrooted():
            root_check.leave_chroot()
    uid, gid = os.geteuid(), os.getegid()
    userns.unshare_user_namespace()
    userns.map_single_id(uid, gid, rooted=True)


def run_as_root() -> str:
    """Return what gives this process the rights that it lacks."""
    lacking = userns.missing_capabilities()
    if os.geteuid() or not lacking:
        return (
            "Run as root (`sudo`, or an outer container with --privileged), or see the row `user "
            "namespace`."
        )
    return (
        f"This root lacks {' '.join(lacking)}: give it back (docker: --privileged, or --cap-add; "
        "systemd: CapabilityBoundingSet=), or see the row `user namespace`."
    )


def try_root() -> str:
    """See whether this process has root's rights."""
    if not is_root():
        raise OSError(
            errno.EPERM, f"uid {os.geteuid()}, without {userns.missing_capabilities()[0]}"
        )
    return (
        "root, with CAP_SYS_ADMIN"
        if os.geteuid() == 0
        else f"uid {os.geteuid()}, with CAP_SYS_ADMIN"
    )


def try_user() -> str:
    """Make one, become its root, and do in it what only its root may: AppArmor lets the namespace
    be made, and takes its rights.
    """
    enter_own_user_namespace()
    sc.unshare(sc.CLONE_NEWNS)
    mounts.make_private()
    sc.mount("tmpfs", mounts.STAGE, "tmpfs")
    return "made, and its root may mount"


#: Who may restrict user namespaces by a parameter, its restricting value, and what helps.
_RESTRICTIONS = {
    "kernel.unprivileged_userns_clone": (
        "0",
        "As root: sysctl -w kernel.unprivileged_userns_clone=1.",
    ),
    "user.max_user_namespaces": ("0", "As root: sysctl -w user.max_user_namespaces=15000."),
    "kernel.apparmor_restrict_unprivileged_userns": (
        "1",
        (
            "As root: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or give this "
            "Python an AppArmor profile with `userns,`."
        ),
    ),
}


def remedy_for_user(trial: Trial) -> str:
    """Find out who restricts user namespaces, and return what helps."""
    restricting = [
        remedy for name, (value, remedy) in _RESTRICTIONS.items() if sysctl.value(name) == value
    ]
    if restricting:
        return " ".join(restricting)
    if trial.errno in {errno.ENOSPC, errno.EUSERS}:
        return (
            "The limit on user namespaces, or on their depth, is reached: raise "
            "user.max_user_namespaces outside, or nest less."
        )
    if helps := denied(trial):
        return helps
    if trial.errno in {errno.EINVAL, errno.ENOSYS}:
        return "This kernel is built without CONFIG_USER_NS: run as root."
    return (
        "A security module, or a chroot around this process, denies it: run outside of the chroot, "
        "or with all capabilities of root."
    )


def try_subordinate_ids() -> str:
    """See whether this user has ranges of ids, and the programs that map them."""
    if is_root():
        return "not needed: root maps every id"
    lacking = [batch for batch in ("newuidmap", "newgidmap") if shutil.which(batch) is None]
    if lacking:
        raise OSError(errno.ENOENT, f"{' and '.join(lacking)} not in PATH")
    without = [path for path in _SUBORDINATE if not _has_range(path)]
    if without:
        raise OSError(errno.ENOENT, f"no range for uid {os.geteuid()} in {' and '.join(without)}")
    return "newuidmap and newgidmap, with a range for this user"


def _has_range(path: str) -> bool:
    names = {str(os.geteuid()), *_own_name()}
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return any(line.split(":")[0] in names for line in file)
    except OSError:
        return False


def _own_name() -> list[str]:
    import pwd

    try:
        return [pwd.getpwuid(os.geteuid()).pw_name]
    except KeyError:
        return []


def remedy_for_ids(trial: Trial) -> str:
    """Return what gives a user subordinate ids."""
    if "PATH" in trial.said:
        return "Install the distribution's package uidmap (shadow-utils elsewhere)."
    return "As root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER."


def trier(name: str) -> Callable[[], str]:
    """Return what makes one namespace, and sees that it is another than before."""
    flag, kind = _FLAGS[name]

    def do() -> str:
        before = namespaces.identity(kind)
        isolate(flag)
        if name == "pid":
            _be_first()
        elif name == "uts":
            socket.sethostname("doctor")
        elif namespaces.identity(kind) == before:
            raise OSError(errno.ENOSYS, "the call is answered, and nothing is made")
        return "made"

    return do


def _be_first() -> None:
    """See that this process's next child is the first process of a PID namespace."""
    pid = os.fork()
    if not pid:
        os._exit(os.getpid() != 1)
    _pid, status = os.waitpid(pid, 0)
    if status:
        raise OSError(
            errno.ENOSYS, "the call is answered, and the first process inside is not number 1"
        )


def remedy_for(name: str) -> Callable[[Trial], str]:
    """Return what helps where that namespace cannot be made."""
    limit = f"user.max_{_FLAGS[name][1]}_namespaces"

    def remedy(trial: Trial) -> str:
        if helps := denied(trial):
            return helps
        if trial.errno == errno.ENOSPC:
            return (
                f"The limit {limit} is reached ({sysctl.value(limit)} here): as root, sysctl "
                f"-w {limit}=15000."
            )
        if trial.errno in {errno.EINVAL, errno.ENOSYS}:
            return "This kernel is built without it."
        return run_as_root()

    return remedy


def try_bridge() -> str:
    """Make a network of containers, and plug in this process's own network."""
    isolate(sc.CLONE_NEWNET)
    own = os.pidfd_open(os.getpid())
    bridge = rtnetlink.Bridge(-1)
    bridge.plug(2, own, IPv4Interface("192.0.2.2/24"))
    return "a container can be plugged into a bridge"


def remedy_for_bridge(trial: Trial) -> str:
    """Return what gives the kernel bridges, or says why they may not be had."""
    if trial.errno == errno.EAFNOSUPPORT:
        return "As root: modprobe af_packet; or a kernel that is built with CONFIG_PACKET."
    if trial.errno == errno.EOPNOTSUPP:
        return (
            "As root: modprobe -a bridge veth; or a kernel that is built with CONFIG_BRIDGE "
            "and CONFIG_VETH."
        )
    return remedy_for("network")(trial)


def try_loopback() -> str:
    """Make a network, and bring its loopback up."""
    isolate(0)
    batch = SyscallBatch()
    network_namespace.add_network(batch, "loopback")
    batch.run()
    return "a new network's loopback comes up"

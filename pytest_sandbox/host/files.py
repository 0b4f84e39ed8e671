"""File systems that a container is built of, each mounted once in a mount namespace that goes with
the fork.
"""

from __future__ import annotations

import errno
import os
import tempfile
from typing import TYPE_CHECKING

from pytest_sandbox.host.kernel import denied
from pytest_sandbox.host.namespace import enter_own_user_namespace, is_root, isolate, run_as_root
from pytest_sandbox.linux import mounts, overlay
from pytest_sandbox.linux import syscall as sc

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_sandbox.host.trial import Trial

__all__ = [
    "COVERED",
    "remedy_for",
    "try_bind",
    "try_devpts",
    "try_overlay",
    "try_overlay_in_user_namespace",
    "try_proc",
    "try_tmpfs",
]

COVERED = (
    "An outer container covers parts of its /proc, so the kernel gives no new one "
    "(mount_namespaces(7)): start it with --security-opt systempaths=unconfined (docker), "
    "--security-opt unmask=ALL (podman), or --privileged."
)
_STAGE = mounts.STAGE
#: Without power over the mounts of the outer namespace, a directory with locked mounts below it
#: cannot be a lower layer: these have none.
_PLAIN_DIRECTORIES = ("/usr", "/etc", "/bin")
_MODULES = {"overlay": "overlay", "overlay in a user namespace": "overlay", "tmpfs": "tmpfs"}


def _stage() -> None:
    mounts.make_private()
    sc.mount("tmpfs", _STAGE, "tmpfs")


def try_tmpfs() -> str:
    """Mount a tmpfs and write to it."""
    isolate(sc.CLONE_NEWNS)
    _stage()
    with open(f"{_STAGE}/file", "w", encoding="ascii") as file:
        file.write("x")
    return "mounted, and written to"


def try_overlay() -> str:
    """Lay a writable layer over the host's root, or as the next where this process is not root;
    write and delete there.
    """
    if not is_root():
        return try_overlay_in_user_namespace()
    isolate(sc.CLONE_NEWNS)
    _stage()
    try:
        return _write_over("/")
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    directory = _plain_directory()
    return f"{_write_over(directory)}, not over / at once, which has locked mounts below it"


def try_overlay_in_user_namespace() -> str:
    """Lay one over a directory with no other right than a user namespace's own root has; write and
    delete there.
    """
    enter_own_user_namespace()
    sc.unshare(sc.CLONE_NEWNS)
    _stage()
    return _write_over(_plain_directory(), ["userxattr"])


def _plain_directory() -> str:
    return next(
        directory
        for directory in _PLAIN_DIRECTORIES
        if os.path.isdir(directory) and not os.path.islink(directory) and os.listdir(directory)
    )


def _write_over(lower: str, options: list[str] | None = None) -> str:
    layer, target = (tempfile.mkdtemp(dir=_STAGE) for _ in range(2))
    overlay.make_layer(f"{layer}/0", _STAGE)
    overlay.mount_overlay([lower], f"{layer}/0", target, options=options or [])
    with open(f"{target}/pytest-sandbox-probe", "w", encoding="ascii") as file:
        file.write("x")
    os.unlink(f"{target}/pytest-sandbox-probe")
    return f"a writable layer lies over {lower}"


def try_proc() -> str:
    """Mount a /proc of a new PID namespace, from inside of it."""
    isolate(sc.CLONE_NEWNS | sc.CLONE_NEWPID)
    mounts.make_private()
    return _in_child(lambda: sc.mount("proc", _STAGE, "proc"), "mounted, for a new PID namespace")


def _in_child(do: Callable[[], None], said: str) -> str:
    """Do it in a child, the first process of the new PID namespace; raise what it met."""
    pid = os.fork()
    if not pid:
        number = 0
        try:
            do()
        except OSError as error:
            number = error.errno or errno.EIO
        finally:
            os._exit(number)
    _pid, status = os.waitpid(pid, 0)
    number = os.waitstatus_to_exitcode(status)
    if number:
        raise OSError(number, os.strerror(number) if number > 0 else f"signal {-number}")
    return said


def try_devpts() -> str:
    """Mount terminals of its own, and open one."""
    isolate(sc.CLONE_NEWNS)
    _stage()
    sc.mount("devpts", _STAGE, "devpts", 0, "newinstance,ptmxmode=0666,mode=0620")
    os.close(os.open(f"{_STAGE}/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    return "mounted, and gives a terminal of its own"


def try_bind() -> str:
    """Take a copy of the root's mounts, make all of it read-only, and attach it elsewhere."""
    isolate(sc.CLONE_NEWNS)
    _stage()
    os.mkdir(f"{_STAGE}/volume")
    fd = sc.open_tree("/", sc.OPEN_TREE_CLONE | sc.AT_RECURSIVE)
    sc.mount_setattr(fd, sc.MOUNT_ATTR_RDONLY, recursive=True)
    sc.move_mount(fd, f"{_STAGE}/volume")
    return "open_tree, mount_setattr and move_mount"


def remedy_for(name: str) -> Callable[[Trial], str]:
    """Return what helps where that file system cannot be mounted."""

    def remedy(trial: Trial) -> str:
        if helps := denied(trial):
            return helps
        if trial.errno == errno.ENODEV:
            return (
                f"This kernel has no {_MODULES.get(name, name)}: as root, modprobe "
                f"{_MODULES.get(name, name)}, or use a kernel that has it."
            )
        if trial.errno == errno.ENOSYS and name == "volumes":
            return "Use a kernel that has all three calls: Linux 5.12 or newer."
        if trial.errno == errno.EPERM and name == "proc":
            return COVERED
        if trial.errno == errno.EINVAL and name.startswith("overlay"):
            return (
                "Use Linux 5.11 or newer for overlays in a user namespace; an outer "
                "container's own root may have to be a plain directory."
            )
        return run_as_root()

    return remedy

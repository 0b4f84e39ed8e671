"""Hosts that lack something, each made of the calling process: ``python simulated.py HOST ARGV``.

Every host is made in namespaces of its own, with mounts, limits and seccomp filters that end with
them: nothing of the machine changes.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_sandbox.linux import capabilities, mounts, seccomp, userns
from pytest_sandbox.linux import syscall as sc
from pytest_sandbox.linux.syscall_batch import SyscallBatch, number

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["HOSTS", "PROJECT", "enter", "wrapped"]

PROJECT = Path(__file__).parents[2]
USER = 1000
HOSTS: dict[str, Callable[[], object]] = {}
#: linux/seccomp.h, linux/filter.h: the answer EPERM to one system call.
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
MS_MOVE = 8192  # linux/mount.h
_DENIED, _ALLOWED = 0x00050000 | errno.EPERM, 0x7FFF0000


def host(function: Callable[[], object]) -> Callable[[], object]:
    """Add a function that makes a host of the calling process to the table."""
    HOSTS[function.__name__] = function
    return function


def wrapped(name: str, *argv: str) -> list[str]:
    """Return the command that executes ``argv`` on a host."""
    return [sys.executable, str(Path(__file__)), name, *argv]


def enter(name: str, argv: list[str]) -> None:
    """Become the host, and execute ``argv`` there."""
    sys.stdout.flush()
    HOSTS[name]()
    os.execv(argv[0], argv)


def own_mounts() -> None:
    sc.unshare(sc.CLONE_NEWNS)
    mounts.make_private()


def tmpfs(path: str, options: str | None = None, flags: int = 0) -> None:
    sc.mount("tmpfs", path, "tmpfs", flags, options)


def bind(source: str, target: str) -> None:
    sc.mount(source, target, None, sc.MS_BIND)


def write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def become_root_of_user_namespace() -> None:
    uid, gid = os.geteuid(), os.getegid()
    sc.unshare(sc.CLONE_NEWUSER)
    userns.map_single_id(uid, gid, rooted=True)


def fork_into_pid_namespace() -> None:
    """Go on as the first process of a new PID namespace; the parent waits, and ends as it does."""
    sc.unshare(sc.CLONE_NEWPID)
    pid = os.fork()
    if pid:
        _pid, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        os._exit(code if code >= 0 else 128 - code)


def whole_user_namespace() -> None:
    """Become root of a user namespace with a PID and a mount namespace of its own."""
    become_root_of_user_namespace()
    fork_into_pid_namespace()
    own_mounts()
    sc.mount("proc", "/proc", "proc")


def lower_limit(kind: str, limit: int) -> None:
    write(f"/proc/sys/user/max_{kind}_namespaces", str(limit))


def drop(*names: str) -> None:
    """Give up capabilities for good."""
    lost = sum(capabilities.bit(name) for name in names)
    for bit in range(lost.bit_length()):
        if lost >> bit & 1:
            sc.prctl(sc.PR_CAPBSET_DROP, bit)
    held = sc.getcaps()[1] & ~lost
    sc.capset(held, held, 0)


def show_python_to_others() -> None:
    """Lay a directory that others may search over a home directory that has this Python in it."""
    for path in {str(PROJECT), sys.prefix, sys.base_prefix}:
        parents = [
            parent for parent in reversed(Path(path).parents) if parent.stat().st_mode & 1 == 0
        ]
        if not parents:
            continue
        tree = sc.open_tree(path, sc.OPEN_TREE_CLONE | sc.AT_RECURSIVE)
        tmpfs(str(parents[0]), "mode=755")
        os.makedirs(path)
        sc.move_mount(tree, path)
        os.close(tree)


def become_user() -> None:
    """Become a user without subordinate IDs, as a login makes one, but without a directory in
    /run/user.
    """
    own_mounts()
    show_python_to_others()
    tmpfs("/home", "mode=1777")
    become_user_here()


def become_user_here() -> None:
    os.environ["HOME"] = f"/home/user{USER}"
    if os.access("/home", os.W_OK):
        os.makedirs(os.environ["HOME"], exist_ok=True)
        os.chown(os.environ["HOME"], USER, USER)
    for name in ("XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "PYTEST_SANDBOX_HOME", "TMPDIR"):
        os.environ.pop(name, None)
    os.setgroups([])
    os.setgid(USER)
    os.setuid(USER)


def deny(*names: str) -> None:
    """Answer EPERM to these system calls, as a seccomp profile does."""
    numbers = [number(name) for name in names]
    filter_ = [(_LOAD, 0, 0, 0)]
    for left, one in zip(range(len(numbers), 0, -1), numbers, strict=True):
        filter_.append((_JUMP_EQUAL, left, 0, one))
    filter_ += [(_RETURN, 0, 0, _ALLOWED), (_RETURN, 0, 0, _DENIED)]
    sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
    sc.seccomp_set_filter(b"".join(struct.pack("=HBBI", *one) for one in filter_))


@host
def plain() -> None:
    """The machine as it is."""


@host
def user() -> None:
    become_user()


@host
def sethostname_denied() -> None:
    """As by podman's default profile with unmask=ALL."""
    deny("sethostname")


@host
def docker_policy() -> None:
    drop(
        *(
            name.removeprefix("CAP_")
            for name in capabilities.names(sc.getcaps()[1] & ~capabilities.DOCKER_DEFAULT)
        )
    )
    sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
    sc.seccomp_set_filter(seccomp.program(capabilities.DOCKER_DEFAULT))


@host
def no_pid_namespace() -> None:
    """UID 0 of a user namespace, as of ``unshare --map-root-user --mount``."""
    become_root_of_user_namespace()
    own_mounts()


@host
def few_devices() -> None:
    """A /dev without zero, full and tty."""
    own_mounts()
    tmpfs("/proc/tty")
    for name in ("null", "random", "urandom"):
        os.mknod(f"/proc/tty/{name}", 0o020666, os.stat(f"/dev/{name}").st_rdev)
    os.mkdir("/proc/tty/shm")
    sc.mount("/proc/tty", "/dev", None, MS_MOVE)
    tmpfs("/dev/shm", "mode=1777")


@host
def proc_of_pids() -> None:
    """A /proc that shows processes alone (proc(5), subset=pid)."""
    fork_into_pid_namespace()
    own_mounts()
    sc.mount("proc", "/proc", "proc", 0, "subset=pid")


@host
def no_proc() -> None:
    own_mounts()
    sc.umount2("/proc", sc.MNT_DETACH)


@host
def children_ignored() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


@host
def signals_blocked() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


@host
def mount_that_is_not_utf8() -> None:
    own_mounts()
    tmpfs("/mnt")
    os.mkdir(b"/mnt/\xff")
    tmpfs("/mnt/\udcff")


@host
def one_user_namespace() -> None:
    whole_user_namespace()
    lower_limit("user", 1)


@host
def two_user_namespaces() -> None:
    whole_user_namespace()
    lower_limit("user", 2)


@host
def user_with_one_user_namespace() -> None:
    become_root_of_user_namespace()
    lower_limit("user", 1)
    drop("SYS_ADMIN")


@host
def user_with_two_user_namespaces() -> None:
    become_root_of_user_namespace()
    lower_limit("user", 2)
    drop("SYS_ADMIN")


@host
def no_user_namespaces() -> None:
    become_root_of_user_namespace()
    lower_limit("user", 0)
    drop("SYS_ADMIN")


@host
def no_network_namespaces() -> None:
    whole_user_namespace()
    lower_limit("net", 0)


@host
def no_mount_namespaces() -> None:
    whole_user_namespace()
    lower_limit("mnt", 0)


def add_kubernetes_mounts() -> None:
    """Mount what a pod has: volumes, and files that the kubelet makes."""
    for path, options in (("/tmp", "mode=1777"), ("/run", "mode=755"), ("/home", "mode=755")):
        tmpfs(path, options)
    os.makedirs("/run/secrets/kubernetes.io/serviceaccount")
    tmpfs("/run/secrets/kubernetes.io/serviceaccount", flags=sc.MS_RDONLY)
    for name in ("hosts", "hostname", "resolv.conf"):
        if os.path.exists(f"/etc/{name}"):
            bind(f"/etc/{name}", f"/etc/{name}")


def pivot_to_overlay(depth: int) -> None:
    """Make the root an overlay over the root, ``depth`` of them on top of each other."""
    lower = "/"
    for _ in range(depth):
        stage = f"{lower.rstrip('/')}/mnt"
        tmpfs(stage)
        for name in ("upper", "work", "root"):
            os.mkdir(f"{stage}/{name}")
        data = f"lowerdir={lower},upperdir={stage}/upper,workdir={stage}/work"
        sc.mount("overlay", f"{stage}/root", "overlay", 0, data)
        lower = f"{stage}/root"
    for name in ("proc", "sys", "dev"):
        sc.mount(f"/{name}", f"{lower}/{name}", None, sc.MS_BIND | sc.MS_REC)
    batch = SyscallBatch()
    mounts.add_pivot_root(batch, "become root", lower)
    batch.run()


def make_kubernetes(depth: int) -> None:
    own_mounts()
    pivot_to_overlay(depth)
    show_python_to_others()
    add_kubernetes_mounts()
    sc.mount(None, "/", None, sc.MS_BIND | sc.MS_REMOUNT | sc.MS_RDONLY)
    become_user_here()
    os.environ["HOME"] = "/"


@host
def kubernetes() -> None:
    """``runAsNonRoot`` with ``readOnlyRootFilesystem``: a root that is read-only, volumes and files
    mounted on it, and a user who may not undo any of them.
    """
    make_kubernetes(depth=1)


@host
def kubernetes_in_a_container() -> None:
    """The same, on a root over which the kernel lays no further overlay."""
    make_kubernetes(depth=2)


@host
def root_on_two_overlays() -> None:
    own_mounts()
    pivot_to_overlay(2)


@host
def read_only_volumes() -> None:
    """A user's host with read-only file systems below which others are mounted."""
    own_mounts()
    show_python_to_others()
    tmpfs("/home", "mode=1777")
    tmpfs("/srv")
    for name in ("plain", "mounted"):
        os.makedirs(f"/srv/{name}/below")
    tmpfs("/srv/mounted/below")
    write("/srv/mounted/below/file", "below")
    sc.mount(None, "/srv", None, sc.MS_REMOUNT | sc.MS_RDONLY)
    become_user_here()


@host
def run_read_only() -> None:
    own_mounts()
    tmpfs("/run", "mode=755", sc.MS_RDONLY)


@host
def run_full() -> None:
    own_mounts()
    tmpfs("/run", "mode=755,size=4096,nr_inodes=100")
    write("/run/file", "x")


@host
def run_of_another_user() -> None:
    own_mounts()
    tmpfs("/run", "mode=755")
    os.mkdir("/run/pytest-sandbox")
    os.chown("/run/pytest-sandbox", 4321, 4321)


@host
def runtime_directory_missing() -> None:
    """As after ``su`` to a user who has not logged in."""
    become_user()
    os.environ["XDG_RUNTIME_DIR"] = f"/run/user/{USER}"


@host
def runtime_directory_of_root() -> None:
    """As after ``su`` with root's environment."""
    become_user()
    os.environ["XDG_RUNTIME_DIR"] = "/run"


@host
def sudo_with_environment() -> None:
    os.environ["XDG_RUNTIME_DIR"] = "/run/user/1000"


@host
def no_state_directory() -> None:
    own_mounts()
    for path in ("/run", "/tmp", "/dev/shm", "/var/tmp"):
        tmpfs(path, "mode=755", sc.MS_RDONLY)


@host
def store_on_an_overlay() -> None:
    own_mounts()
    tmpfs("/mnt")
    for name in ("lower", "upper", "work", "store"):
        os.mkdir(f"/mnt/{name}")
    sc.mount(
        "overlay",
        "/mnt/store",
        "overlay",
        0,
        "lowerdir=/mnt/lower,upperdir=/mnt/upper,workdir=/mnt/work",
    )
    os.environ["PYTEST_SANDBOX_HOME"] = "/mnt/store"


@host
def own_cgroup_namespace() -> None:
    sc.unshare(sc.CLONE_NEWCGROUP)


@host
def no_dac_override() -> None:
    drop("DAC_OVERRIDE")


@host
def deleted_directory() -> None:
    path = f"/tmp/deleted-{os.getpid()}"
    os.mkdir(path)
    os.chdir(path)
    os.rmdir(path)


@host
def chroot() -> None:
    """A chroot whose root is a directory, not a mount point."""
    own_mounts()
    tmpfs("/mnt")
    os.mkdir("/mnt/root")
    for name in os.listdir("/"):
        if os.path.islink(f"/{name}"):
            os.symlink(os.readlink(f"/{name}"), f"/mnt/root/{name}")
        elif os.path.isdir(f"/{name}") and name != "mnt":
            os.mkdir(f"/mnt/root/{name}")
            sc.mount(f"/{name}", f"/mnt/root/{name}", None, sc.MS_BIND | sc.MS_REC)
    os.chroot("/mnt/root")


@host
def process_limit() -> None:
    become_root_of_user_namespace()
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
    drop("SYS_ADMIN", "SYS_RESOURCE")


if __name__ == "__main__":
    enter(sys.argv[1], sys.argv[2:])

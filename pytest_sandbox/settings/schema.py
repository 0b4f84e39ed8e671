"""The description of every setting: the accepted form, the default, the meaning, and whether it is
an option of pytest.

Options, ini settings and the reference documentation are generated from it. It is separate from the
parsers and from :class:`~pytest_sandbox.settings.settings.Settings`, so that a pytest session
without containers does not import these.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["DEVICE_FORM", "MOST_PIDS", "SECURITY", "SIZE_FORM", "TMP_PATH", "WORDS", "Words"]

SIZE_FORM = 'bytes, or a number with b, k, m, g, t or p, counted by 1024, such as "512m"'
MOST_PIDS = 4_194_304  # PID_MAX_LIMIT, the most that pids.max accepts
BYTE_RATE_FORM = (
    'items "PATH:RATE", or a dict, with the absolute PATH of a block device and '
    'bytes a second, such as "/dev/sda:1mb"; at least 2'
)
COUNT_RATE_FORM = (
    'items "PATH:RATE", or a dict, with the absolute PATH of a block device and a '
    'number a second, such as "/dev/sda:100"; at least 2'
)
#: Stands for the test's directory ``tmp_path`` in a pattern of artifacts.
TMP_PATH = "{tmp_path}"
ARTIFACTS_FORM = (
    'patterns of paths without "..", absolute, relative to the rootdir or starting with '
    '"{tmp_path}", such as "reports/**/*.png"'
)
SECURITY = ("seccomp=unconfined", "seccomp=builtin", "no-new-privileges", "no-new-privileges:false")
SECURITY_FORM = f"items among {', '.join(SECURITY)}"
PUBLISH_FORM = (
    'items "[[HOST:]HOST_PORT:]PORT[/tcp|/udp]", such as "5432", "8080:80" or "53/udp", at most 64'
)
ULIMIT_FORM = (
    'a dict of int or (soft, hard), or "NAME=SOFT[:HARD]" items; -1 or unlimited for no limit'
)
DEVICE_FORM = (
    'items "SOURCE[:TARGET[:rw]]" with absolute paths: a device node of the host, or a directory '
    "of them, and its path inside"
)
VOLUME_FORM = (
    'items "SOURCE:TARGET[:ro]" with an absolute TARGET and a SOURCE that begins with /, . or ~'
)

TMPFS_FORM = (
    'items "PATH[:OPTIONS]" with an absolute PATH and OPTIONS among size=SIZE, mode=MODE, ro, rw, '
    'exec, noexec, nosuid and nodev, such as "/run:size=64m,mode=755"'
)
EXTRA_HOSTS_FORM = (
    'a dict of name to IP address, or "NAME:ADDRESS" items, such as "db.example:10.0.0.5"'
)


class Words(NamedTuple):
    """The description of a setting."""

    form: str
    default: str
    meaning: str
    option: bool = False


#: Setting -> its description, in the order of the documentation.
WORDS: dict[str, Words] = {
    "image": Words(
        '"host", a reference, a path or an Image',
        "host",
        "the host's root file system, a stored image, or a directory",
        option=True,
    ),
    "memory": Words(
        f"{SIZE_FORM}; at least 6m",
        "none",
        "hard limit; over it the kernel kills a process inside",
        option=True,
    ),
    "memory_swap": Words(
        "a size of at least memory, or -1 for no limit", "as memory", "memory plus swap"
    ),
    "memory_high": Words(
        f"{SIZE_FORM}; at least 6m",
        "none",
        "over it the kernel throttles processes and reclaims memory (cgroup v2)",
    ),
    "cpus": Words("a number of at least 0.01", "none", "CPU time per wall time", option=True),
    "cpuset": Words('CPU numbers and ranges, such as "0-1,3"', "none", "CPUs that may be used"),
    "pids_limit": Words(f"1 to {MOST_PIDS}, or -1 for no limit", "4096", "processes and threads"),
    "device_read_bps": Words(BYTE_RATE_FORM, "none", "bytes a second read from a device"),
    "device_write_bps": Words(BYTE_RATE_FORM, "none", "bytes a second written to a device"),
    "device_read_iops": Words(COUNT_RATE_FORM, "none", "reads a second from a device"),
    "device_write_iops": Words(COUNT_RATE_FORM, "none", "writes a second to a device"),
    "disk": Words(
        f"{SIZE_FORM}; more than 0",
        "none",
        "size of the writable layer; over it writes get ENOSPC",
        option=True,
    ),
    "storage": Words(
        '"memory" or "disk"',
        "memory",
        "where the writable layer is stored: a tmpfs (counts as memory) or a directory",
        option=True,
    ),
    "shm_size": Words(f"{SIZE_FORM}; more than 0", "64m", "size of /dev/shm"),
    "timeout": Words(
        "seconds, more than 0",
        "none",
        "wall time of the test inside, or of one run; over it all processes are killed",
        option=True,
    ),
    "network": Words(
        '"none", "host", "outside", "NAME:PORT" and "ADDRESS:PORT" items, or a Network',
        "none",
        "none: a separate network namespace with loopback up; items: what may be connected to",
        option=True,
    ),
    "publish": Words(
        PUBLISH_FORM,
        "none",
        "ports that the host reaches, on a loopback address of the container's own",
    ),
    "hostname": Words(
        "host names by RFC 1123 of at most 63 characters each",
        "the container's id",
        "host name inside; further names are aliases on its `Network`",
    ),
    "extra_hosts": Words(EXTRA_HOSTS_FORM, "none", "names and addresses to add to /etc/hosts"),
    "env": Words(
        'a dict of str to str, or "NAME=value" items',
        "inherited, or the image's",
        "environment variables to add",
    ),
    "user": Words(
        '"UID", "UID:GID", "NAME", "NAME:GROUP"',
        "the invoking user, or the image's",
        "user of the processes inside",
    ),
    "workdir": Words(
        "an absolute path inside", "the current directory, or the image's", "working directory"
    ),
    "volumes": Words(VOLUME_FORM, "none", "host directories whose changes are not discarded"),
    "tmpfs": Words(
        TMPFS_FORM, "none", "file systems in memory, which are neither in the layer nor in diff()"
    ),
    "devices": Words(DEVICE_FORM, "none", "device nodes of the host that may be used inside"),
    "gpus": Words(
        '"all", or "device=0,1" with numbers of GPUs',
        "none",
        "NVIDIA GPUs: their device nodes and, on an image, the host's driver libraries",
    ),
    "read_only": Words("true or false", "false", "no writable layer"),
    "cap_add": Words(
        "capability names such as NET_ADMIN, or ALL",
        "none",
        "capabilities beyond docker's default set",
    ),
    "cap_drop": Words(
        "capability names such as NET_RAW, or ALL",
        "none",
        "capabilities removed from docker's default set",
    ),
    "ulimits": Words(ULIMIT_FORM, "inherited", "resource limits of each process"),
    "security_opt": Words(
        SECURITY_FORM,
        "seccomp=builtin, no-new-privileges",
        "seccomp policy; whether set-user-ID programs gain privileges",
    ),
    "privileged": Words("true or false", "false", "all capabilities, no seccomp, no masked paths"),
    "artifacts": Words(
        ARTIFACTS_FORM, "none", "files of a test that are copied to the host when it ends"
    ),
    "artifacts_limit": Words(
        f"{SIZE_FORM}; more than 0", "100m", "size of the artifacts of one test"
    ),
    "alone": Words("true or false", "false", "no other test of the session runs meanwhile"),
}

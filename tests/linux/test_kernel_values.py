"""Capabilities, mounts, overlays' options, processes and the errno door: what is computed, and what
the kernel answers.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import pytest

from pytest_sandbox.errors import SettingsError
from pytest_sandbox.linux import capabilities, mounts, overlay, process
from pytest_sandbox.linux import syscall as sc

DOCKER = capabilities.DOCKER_DEFAULT


@pytest.mark.parametrize(
    ("add", "drop", "privileged", "expected"),
    [
        ((), (), False, DOCKER),
        (("NET_ADMIN",), (), False, DOCKER | 1 << 12),
        (("cap_net_admin",), (), False, DOCKER | 1 << 12),
        ((), ("CHOWN",), False, DOCKER & ~1),
        ((), ("ALL",), False, 0),
        (("CHOWN",), ("ALL",), False, 1),
        (("ALL",), (), False, capabilities.ALL),
        (("ALL",), ("CHOWN",), False, capabilities.ALL & ~1),
        (("CHOWN",), ("CHOWN",), False, DOCKER),
        ((), (), True, capabilities.ALL),
    ],
)
def test_capabilities_as_docker_resolves_them(add, drop, privileged, expected):
    """--cap-add, --cap-drop and --privileged give docker's set."""
    assert expected == capabilities.resolve(add, drop, privileged=privileged)


def test_dockers_default_set():
    """Fourteen, whose mask is known from every container's /proc/self/status."""
    assert (0xA80425FB, 14) == (DOCKER, len(capabilities.names(DOCKER)))
    assert ("CAP_CHOWN", "CAP_SETFCAP") == (
        capabilities.names(DOCKER)[0],
        capabilities.names(DOCKER)[-1],
    )


def test_an_unknown_capability_is_named():
    """The key and the name are in the error."""
    with pytest.raises(SettingsError, match="cap_add='NOPE' is not valid"):
        capabilities.resolve(["NOPE"])


def test_what_the_kernel_knows():
    """The names are at least those of this kernel."""
    assert capabilities.supported() <= capabilities.ALL | capabilities.supported()
    assert capabilities.supported() & DOCKER == DOCKER


LINE = "36 35 98:0 /mnt1 {point} {flags} master:1 - {kind} /dev/root rw,errors=continue"


@pytest.mark.parametrize(
    ("written", "point"),
    [("/a", "/a"), (r"/a\040b", "/a b"), (r"/a\011b", "/a\tb"), (r"/a\012b", "/a\nb"), (r"/a\134b", "/a\\b"), (r"/a\134040b", r"/a\040b"),
     ("/a\u2028b", "/a\u2028b"), ("/a\x0cb", "/a\x0cb"), ("/\udcff", "/\udcff"), ("/a#b,c:d", "/a#b,c:d")],
)  # fmt: skip
def test_paths_of_the_mount_table(written, point):
    """Escapes are undone, and nothing but a newline ends a line."""
    text = (
        LINE.format(point=written, flags="rw,nosuid,noexec", kind="ext4")
        + "\n"
        + LINE.format(point="/z", flags="ro", kind="tmpfs")
        + "\n"
    )
    first, second = mounts.list_mounts(os.fsencode(text))
    assert (point, "ext4", sc.MS_NOSUID | sc.MS_NOEXEC) == (first.point, first.fstype, first.flags)
    assert ("/z", "tmpfs", sc.MS_RDONLY) == (second.point, second.fstype, second.flags)


def test_real_mounts_are_files_of_a_users(tmp_path):
    """What shows the kernel's state, lies below /proc, /sys or /dev, is gone or is the root is left
    out; the topmost mount counts.
    """
    (tmp_path / "file").touch()

    def mount(point, kind="ext4", flags=0):
        return mounts.HostMount(str(point), kind, flags)

    entries = [
        mount("/"), mount(tmp_path), mount(tmp_path, "xfs", sc.MS_RDONLY), mount(tmp_path / "file"), mount("/proc", "proc"), mount("/dev/shm", "tmpfs"),
        mount("/sys/fs/cgroup", "tmpfs"), mount("/no/such/place"), mount("/usr", "fuse.something"), mount("/etc", "cgroup2"),
    ]  # fmt: skip
    found = mounts.real_mounts(entries)
    assert [
        (str(tmp_path), "xfs", True),
        (str(tmp_path / "file"), "ext4", False),
        ("/usr", "fuse.something", True),
    ] == [(one.point, one.fstype, one.is_directory) for one in found]


@pytest.mark.parametrize(
    ("path", "written"),
    [
        ("/a", "/a"),
        ("/a:b", "/a\\:b"),
        ("/a,b", "/a\\,b"),
        ("/a\\b", "/a\\\\b"),
        ("/a\\:b", "/a\\\\\\:b"),
    ],
)
def test_paths_of_overlays_are_escaped(path, written):
    """What separates directories and options is escaped, the escape first."""
    assert f"lowerdir={written}:/z,upperdir=/l/upper,workdir=/l/work,o" == overlay._data(
        [path, "/z"], "/l", ["o"]
    )


def test_a_layers_root_is_like_what_it_lies_on(tmp_path):
    """Mode and owner are the lower directory's, set-group-ID and sticky bits too."""
    like = tmp_path / "like"
    like.mkdir()
    like.chmod(0o3751)
    overlay.make_layer(str(tmp_path / "layer"), str(like))
    upper = (tmp_path / "layer/upper").stat()
    assert (like.stat().st_mode, like.stat().st_uid, ["upper", "work"]) == (
        upper.st_mode,
        upper.st_uid,
        sorted(os.listdir(tmp_path / "layer")),
    )


@pytest.mark.vm
def test_a_failed_call_names_itself_and_its_arguments():
    """The error is the errno's class, and its text has the call."""
    with pytest.raises(OSError, match=r"umount2\(/no/such/mount, 2\)") as caught:
        sc.umount2("/no/such/mount", sc.MNT_DETACH)
    assert caught.value.errno in {errno.ENOENT, errno.EPERM}
    with pytest.raises(OSError, match=r"setns\(-1, 0x20000000\)") as caught:
        sc.setns(-1, sc.CLONE_NEWPID)
    assert errno.EBADF == caught.value.errno


def test_openat2_stays_below_its_directory(tmp_path):
    """RESOLVE_IN_ROOT takes every link, .. and absolute ones too, as below the directory."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/name").write_text("inside")
    (tmp_path / "link").symlink_to("/../../etc/name")
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        with open(sc.openat2("link", os.O_RDONLY, sc.RESOLVE_IN_ROOT, dir_fd=directory)) as file:
            assert "inside" == file.read()
    finally:
        os.close(directory)


@pytest.mark.vm
def test_processes_by_their_descriptors():
    """Both ended and kill work on a pidfd, also of one that has ended."""
    with subprocess.Popen(["sleep", "60"]) as p:
        fd = os.pidfd_open(p.pid)
        try:
            assert not process.ended(fd, 0)
            process.kill(fd, signal.SIGTERM)
            assert process.ended(fd, 30)
            assert -signal.SIGTERM == p.wait(30)
            process.kill(fd, signal.SIGTERM)
        finally:
            os.close(fd)


def test_descendants_are_found():
    """A process and all below it."""
    code = (
        "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, "
        "flush=True); sys.stdin.read(); p.kill()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as p:
        below = int(p.stdout.readline())
        assert [p.pid, below] == process.descendants(p.pid)
        p.communicate("")
    assert [p.pid] == process.descendants(p.pid)


def test_close_others_keeps_what_it_is_told(tmp_path):
    """All descriptors past the standard ones go, but for those that are named."""
    code = (
        "import os\nfrom pytest_sandbox.linux import process\n"
        "for n in (5, 9, 300): os.dup2(1, n)\n"
        "process.close_others({9})\n"
        "print([n for n in range(1000) if os.path.exists(f'/proc/self/fd/{n}')])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "[0, 1, 2, 9]\n" == done.stdout

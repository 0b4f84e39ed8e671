"""Processes by their pidfds, and the errors of system calls."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import pytest

from pytest_sandbox.linux import process
from pytest_sandbox.linux import syscall as sc


@pytest.mark.vm
def test_errors_of_system_calls():
    """The error has the class of the errno, and the call with its arguments in its text."""
    with pytest.raises(OSError, match=r"umount2\(/no/such/mount, 2\)") as caught:
        sc.umount2("/no/such/mount", sc.MNT_DETACH)
    assert caught.value.errno in {errno.ENOENT, errno.EPERM}
    with pytest.raises(OSError, match=r"setns\(-1, 0x20000000\)") as caught:
        sc.setns(-1, sc.CLONE_NEWPID)
    assert errno.EBADF == caught.value.errno


def test_openat2_resolves_in_root(tmp_path):
    """With RESOLVE_IN_ROOT, absolute links and .. stay in the directory."""
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
def test_ended_and_kill():
    """ended() and kill() work on a pidfd, also after the process has ended."""
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


def test_descendants():
    """A process and its child are found."""
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


def test_close_others(tmp_path):
    """All descriptors above 2 are closed except those that are listed."""
    code = (
        "import os\nfrom pytest_sandbox.linux import process\n"
        "for n in (5, 9, 300): os.dup2(1, n)\n"
        "process.close_others({9})\n"
        "print([n for n in range(1000) if os.path.exists(f'/proc/self/fd/{n}')])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "[0, 1, 2, 9]\n" == done.stdout

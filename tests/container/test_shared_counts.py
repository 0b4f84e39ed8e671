"""Resources that the kernel counts for the machine or by UID are not shared with containers."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import contextmanager
from subprocess import PIPE

import pytest

from pytest_sandbox import Container

pytestmark = [pytest.mark.needs("containers")]

#: Uses up a resource, prints the count, and waits until it is killed.
EXHAUST = """
import ctypes, os, resource, signal
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
inotify_init1 = ctypes.CDLL(None).inotify_init1
count = 0
def one():
    {one}
try:
    while count < 20000 and one() >= 0:
        count += 1
except OSError:
    pass
print(count, flush=True)
signal.pause()
"""
INOTIFY = EXHAUST.format(one="return inotify_init1(0)")
TERMINAL = EXHAUST.format(one='return os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)')


@contextmanager
def exhausted(container, code):
    """Have a process use up a resource; yield how much there was."""
    with container.popen([sys.executable, "-S", "-c", code], stdout=PIPE, text=True) as process:
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def test_inotify_instances_are_not_shared_with_the_host():
    """When a container has used up its inotify instances, the same user outside still gets one."""
    with Container() as c, exhausted(c, INOTIFY) as count:
        fd = ctypes.CDLL(None).inotify_init1(0)
    assert (True, True) == (count > 0, fd >= 0)
    os.close(fd)


def test_terminals_are_limited_per_container():
    """When a container has used up its terminals, another container and the host still get one."""
    with Container() as c, Container() as other, exhausted(c, TERMINAL) as count:
        code = "import os; print(len(os.openpty()))"
        found = other.run(
            [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True
        )
        for fd in os.openpty():
            os.close(fd)
    assert (256, "2\n") == (count, found.stdout)


@pytest.mark.needs("root")  # without root, disk= needs Linux 6.6
@pytest.mark.parametrize("where", ["/tmp", "/dev/shm"])
def test_disk_limits_inodes(where):
    """disk= and shm_size= limit the number of inodes, which take memory too."""
    code = """
import errno, os, sys
try:
    for number in range(100_000):
        os.close(os.open(f"{sys.argv[1]}/{number}", os.O_CREAT | os.O_WRONLY))
except OSError as error:
    print(errno.errorcode[error.errno], number > 500)
"""
    with Container(disk="8m", shm_size="8m") as c:
        found = c.run(
            [sys.executable, "-S", "-c", code, where], capture_output=True, text=True, check=True
        )
    assert "ENOSPC True\n" == found.stdout


@pytest.mark.needs("root")
@pytest.mark.parametrize("where", ["/tmp", "/dev/shm"])
def test_disk_limits_extended_attributes(where):
    """disk= and shm_size= limit extended attributes, which are outside of the file system's
    blocks.
    """
    code = """
import errno, os, sys
path = sys.argv[1] + "/file"
try:
    for number in range(1000):
        open(f"{path}{number // 10}", "a").close()
        os.setxattr(f"{path}{number // 10}", f"user.{number}", bytes(1 << 16))
except OSError as error:
    print(errno.errorcode[error.errno], number << 16 < 8 << 20)
"""
    with Container(disk="8m", shm_size="8m") as c:
        found = c.run(
            [sys.executable, "-S", "-c", code, where], capture_output=True, text=True, check=True
        )
    assert found.stdout in (
        "ENOSPC True\n",
        "EOPNOTSUPP True\n",
    )  # before Linux 6.6 a tmpfs has no user xattrs

"""Containers of a process in a chroot, as of schroot, mock or arch-chroot."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.needs("containers", "root", "unshare"), pytest.mark.vm]

#: Creates a root with the host's directories, a /marker and a new /tmp.
CHROOT = """
mkdir root; mount -t tmpfs none root; cd root
[ $0 = plain ] && mkdir plain && cd plain
for path in /*; do
  if [ -L $path ]; then cp -P $path .$path
  elif [ $path = /tmp ]; then mkdir tmp
  elif [ -d $path ]; then mkdir .$path; mount --rbind $path .$path
  fi
done
echo chroot > marker
"""
REAL = """
import os
from pytest_sandbox import Container
with Container() as c:
    c.run(["touch", "/written", "/usr/written", "/tmp/written"], check=True)
    own = c.run(["readlink", "/proc/self/ns/user"], capture_output=True).stdout.decode()
    print(c.read_text("/marker"), own != os.readlink("/proc/self/ns/user"))
    print(sorted(change.path for change in c.diff() if change.kind == "added"))
print([os.path.exists(path) for path in ("/written", "/usr/written", "/tmp/written")])
"""
#: Builds a container as a launcher would if it had not made the chroot its root.
UNCHANGED = """
import tempfile
from pytest_sandbox.runtime.create import ContainerBuilder
from pytest_sandbox.runtime.host_resources import HostResources
from pytest_sandbox.runtime.spec import Spec
host = HostResources(tempfile.mkdtemp())
spec = Spec(user_namespace=False)
try:
    ContainerBuilder(spec, host, hostname="x", network=-1, cgroup_files=(), held_layers={}).build()
except OSError as error:
    print(error.step, error.strerror)
"""


def in_chroot(tmp_path, kind: str, code: str) -> str:
    command = [
        "unshare",
        "-m",
        "sh",
        "-ec",
        CHROOT + '\nexec chroot . "$1" -c "$2"',
        kind,
        sys.executable,
        code,
    ]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (0, "") == (done.returncode, done.stderr)
    return done.stdout


@pytest.mark.parametrize("kind", ["mounted", "plain"])
def test_the_root_of_a_container_is_the_callers_chroot(tmp_path, kind):
    """Its files are those of the chroot and writes stay inside, whether or not the chroot is a
    mount point.
    """
    expected = (
        "chroot\n True\n['/tmp/written', '/usr/written', '/written']\n[False, False, False]\n"
    )
    assert expected == in_chroot(tmp_path, kind, REAL)


def test_a_container_with_the_hosts_root_is_not_started(tmp_path):
    """If joining the container would lead to the host's root, that is found before anything but
    init runs, and the start fails.
    """
    assert (
        "verify the root a process that joins the container would not be in its root\n"
        == in_chroot(tmp_path, "mounted", UNCHANGED)
    )

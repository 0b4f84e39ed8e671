"""Containers that are created by the list of calls of the one before them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_sandbox import Container

pytestmark = pytest.mark.needs("root")

NAMES = "hostname; cat /etc/hostname; tail -n 1 /etc/hosts | cut -f 2"


def names(container):
    return container.run(["sh", "-c", NAMES], capture_output=True, text=True).stdout.split()


def test_each_container_has_its_own_name_and_cgroup():
    """More than ten in a row, so that the IDs get longer; some run at the same time, with other
    settings between.
    """
    with Container(memory="64m") as first:
        found = []
        for number in range(12):
            with Container(memory="64m") as c, Container(network="host") as other:
                found.append(c.id)
                assert [c.id] * 3 == names(c)
                assert c.id != other.id
                limit = c.stats().memory_limit
                assert 64 << 20 == limit
                assert number + 1 == len(set(found))
        assert [first.id] * 3 == names(first)


def test_a_given_host_name_is_not_that_of_the_next():
    """It replaces the ID in one container only."""
    for _ in range(3):
        with Container(hostname="mine") as named:
            assert ["mine"] * 3 == names(named)
        with Container() as c:
            assert [c.id] * 3 == names(c)


CHANGES = """
set -e
cp -a /etc etc
mkdir place
unshare --mount --propagation=private sh -c '
  set -e
  mount --bind etc /etc
  mount -t tmpfs -o mode=700 none place
  mkdir place/sub
  touch place/sub/file other
  mount --bind other place/sub/file
  exec "$0" -c "$1"
' "$0" "$1"
"""
LOOK = """
import os
from pytest_sandbox import Container
def look():
    script = "stat -c '%a %u' place; stat -c '%a %Y' place/sub; head -n 1 /etc/hosts"
    with Container():
        pass  # it was created before the change
    found = set()
    for _ in range(3):
        with Container() as c:
            found.add(c.run(["sh", "-c", script], capture_output=True, text=True).stdout)
    assert 1 == len(found), found
    print("|".join(found.pop().splitlines()))
os.utime("place/sub", (5, 1000))
look()
os.chmod("place", 0o711)
look()
os.chown("place", 12, 0)
look()
os.chmod("place/sub", 0o751)
look()
os.utime("place/sub", (5, 2000))
look()
with open("/etc/hosts", "w") as file: file.write("1.2.3.4 changed\\n")
look()
"""


def test_changes_of_the_host_are_in_the_next_container(tmp_path):
    """Modes, owners and times of the directories that a container's layers copy, and the files
    that it gets copies of. A prewarmed container may be one change behind.
    """
    first = Path("/etc/hosts").read_text().splitlines()[0]
    done = subprocess.run(
        ["sh", "-c", CHANGES, sys.executable, LOOK],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert "" == done.stderr
    assert [
        f"700 0|755 1000|{first}",
        f"711 0|755 1000|{first}",
        f"711 12|755 1000|{first}",
        f"711 12|751 1000|{first}",
        f"711 12|751 2000|{first}",
        "711 12|751 2000|1.2.3.4 changed",
    ] == done.stdout.splitlines()

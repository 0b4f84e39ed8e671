"""What the host has mounted, as containers see it: nothing below it reaches the host."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.needs("containers", "root", "unshare")]


@pytest.fixture
def in_mounts(tmp_path):
    """Run a shell script and then Python code in a mount namespace of their own; return what the
    code prints.

    Both run in ``tmp_path``.
    """

    def run(script: str, code: str) -> str:
        command = [
            "unshare",
            "-m",
            "sh",
            "-ec",
            f'{script}\nexec "$0" -c "$1"',
            sys.executable,
            code,
        ]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert (0, "") == (done.returncode, done.stderr)
        return done.stdout

    return run


@pytest.mark.parametrize("octal", [r"a\014b", r"caf\351", r"a b\nc", r"x,y:z\\w"])
def test_a_mount_with_an_unusual_path_is_one_like_any_other(in_mounts, octal):
    """What is mounted there can be read and written inside, and the host's file stays as it is."""
    script = (
        f'name=$(printf \'{octal}\'); mkdir "$name"; mount -t tmpfs none "$name"; echo hosts '
        '> "$name/file"'
    )
    code = """
import os
from pytest_sandbox import Container
(name,) = os.listdir(".")
path = os.path.abspath(f"{name}/file")
with Container() as c:
    c.run(["sh", "-c", 'cat "$0"; echo ours > "$0"', path], check=True)
    print([change.kind for change in c.diff() if change.path == path], open(path).read())
"""
    assert "hosts\n['modified'] hosts\n\n" == in_mounts(script, code)


FILES = """
mkdir below; echo below > below/file; mkfifo below/fifo
echo content > real; mkfifo fifo; touch at-file at-socket at-fifo; chmod 640 real; chown 12:34 real
python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("socket")'
mkdir at-below; mount --bind below at-below; mount -o remount,bind,ro at-below
for name in file socket fifo; do mount --bind $([ $name = file ] && echo real || echo $name) at-$name; done
"""


def test_a_mounted_file_is_a_copy_that_can_be_written_renamed_and_removed(in_mounts):
    """Content, mode and owner are the host's; it is no mount inside, and no change until it is
    changed.
    """
    code = """
import os, stat
from pytest_sandbox import Container
path = os.path.abspath("at-file")
with Container() as c:
    print(c.run(["stat", "-c", "%a %u %g", path], capture_output=True, text=True).stdout.strip(), c.read_text(path).strip())
    print([change for change in c.diff() if change.path.endswith("at-file")])
    c.run(["sh", "-ec", 'echo more >> "$0"; mv "$0" "$0-2"; cat "$0-2"; rm "$0-2"', path], check=True)
    print([change.kind for change in c.diff() if "at-file" in change.path], open(path).read())
"""
    assert "640 12 34 content\n[]\ncontent\nmore\n['deleted'] content\n\n" == in_mounts(FILES, code)


def test_the_content_of_a_mounted_file_is_the_current_one(in_mounts):
    """A container that was made ahead, before the host changed the file, is not handed out."""
    code = """
import os, select
from pytest_sandbox import Container
from pytest_sandbox.client import session
path, seen = os.path.abspath("at-file"), []
for number in range(4):
    with open(path, "w") as file:
        file.write(str(number))
    with Container() as c:
        seen.append(c.read_text(path))
        seen += map(len, select.select([session.current().channel], [], [], 10)[:1])  # until the next one is made
print(*seen)
"""
    assert "0 1 1 1 2 1 3 1\n" == in_mounts(FILES, code)


def test_a_mounted_socket_is_not_the_hosts(in_mounts):
    """Where the host's accepts connections, the container's refuses them; with ``volumes`` it is
    the host's.
    """
    code = """
import os, socket
from pytest_sandbox import Container
server = socket.socket(socket.AF_UNIX)
os.unlink("socket")
server.bind("socket")
server.listen()
path = os.path.abspath("socket")
os.system(f"umount at-socket; mount --bind socket at-socket")
path = os.path.abspath("at-socket")
def connect():
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(path)
print(connect())
with Container() as c:
    print(os.strerror(c.call(connect)))
with Container(volumes=[f"{path}:{path}"]) as c:
    print(c.call(connect))
"""
    assert "0\nConnection refused\n0\n" == in_mounts(FILES, code)


@pytest.mark.parametrize("name", ["at-fifo", "at-below/fifo"])
def test_a_mounted_fifo_is_not_the_hosts(in_mounts, name):
    """A reader on the host is none inside, be the FIFO a mount or in a directory that is mounted
    read-only.
    """
    code = f"""
import os
from pytest_sandbox import Container
path = os.path.abspath("{name}")
reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
def write():
    os.open(path, os.O_WRONLY | os.O_NONBLOCK)
with Container() as c:
    try:
        c.call(write)
    except OSError as error:
        print(error.strerror)
"""
    assert "No such device or address\n" == in_mounts(FILES, code)


@pytest.mark.parametrize("name", ["at-file", "at-below/file"])
def test_a_lock_inside_is_not_the_hosts(in_mounts, name):
    """A file that is mounted, or lies in a directory that is mounted read-only, can be locked on
    both sides at once.
    """
    code = f"""
import fcntl, os
from pytest_sandbox import Container
path = os.path.abspath("{name}")
host = open(path)
fcntl.flock(host, fcntl.LOCK_EX)
def lock():
    with open(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file.read()
with Container() as c:
    print(c.call(lock), end="")
"""
    assert {"at-file": "content\n", "at-below/file": "below\n"}[name] == in_mounts(FILES, code)


def test_a_directory_that_is_mounted_read_only_stays_so(in_mounts):
    """Nothing can be written there, with read_only and without."""
    code = """
import os
from pytest_sandbox import Container
for read_only in (False, True):
    with Container(read_only=read_only) as c:
        done = c.run(["sh", "-c", 'cat "$0/file"; echo x > "$0/file"', os.path.abspath("at-below")], capture_output=True, text=True)
        print(done.stdout.strip(), "Read-only file system" in done.stderr)
"""
    assert "below True\nbelow True\n" == in_mounts(FILES, code)


def test_the_report_names_the_socket_that_was_refused(in_mounts, tmp_path):
    """A refused connection has a hint that says which socket of the host is a mount, and what
    passes it in.
    """
    (tmp_path / "test_it.py").write_text(
        "import os, socket\n"
        "def test_it():\n"
        "    socket.socket(socket.AF_UNIX).connect(os.path.abspath('at-socket'))\n"
        "def test_fifo():\n"
        "    os.open(os.path.abspath('at-fifo'), os.O_WRONLY | os.O_NONBLOCK)\n"
    )
    code = (
        "import pytest; pytest.main(['--sandbox', '-p', 'no:cacheprovider', '-p', "
        "'no:asyncio', 'test_it.py'])"
    )
    said = in_mounts(FILES, code)
    for name in ("at-socket", "at-fifo"):
        path = tmp_path / name
        assert (
            f"{path} is a mount of the host that is not available inside. "
            f'volumes=["{path}:{path}"] passes it in.' in said
        )

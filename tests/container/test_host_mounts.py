"""Files, sockets and directories that are mounts of the host, as containers see them."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.needs("containers", "root", "unshare")]


@pytest.fixture
def in_mounts(tmp_path):
    """Run a shell script and then Python code in a new mount namespace, in ``tmp_path``; return
    what the code prints.
    """

    def run(script: str, code: str) -> str:
        command = [
            "unshare",
            "-m",
            "sh",
            "-ec",
            f'{script}\nexec "$0" -u -c "$1"',
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
def test_mounts_with_unusual_paths(in_mounts, octal):
    """A file system at a path with unusual characters can be read and written inside, and the
    host's files do not change.
    """
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
mount --bind real at-file; mount --bind socket at-socket; mount --bind fifo at-fifo
"""


def test_a_mounted_file_is_a_copy_that_can_be_changed(in_mounts):
    """Content, mode and owner are the host's; inside it is not a mount, and not a change until it
    is changed.
    """
    code = """
import os, stat
from pytest_sandbox import Container
path = os.path.abspath("at-file")
with Container() as c:
    status = c.run(["stat", "-c", "%a %u %g", path], capture_output=True, text=True)
    print(status.stdout.strip(), c.read_text(path).strip())
    print([change for change in c.diff() if change.path.endswith("at-file")])
    script = 'echo more >> "$0"; mv "$0" "$0-2"; cat "$0-2"; rm "$0-2"'
    c.run(["sh", "-ec", script, path], check=True)
    print([change.kind for change in c.diff() if "at-file" in change.path], open(path).read())
"""
    assert "640 12 34 content\n[]\ncontent\nmore\n['deleted'] content\n\n" == in_mounts(FILES, code)


def test_the_content_of_a_mounted_file_is_the_current_one(in_mounts):
    """A container that was prepared before the host changed the file is not used."""
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
        # Wait until the next container is prepared.
        seen += map(len, select.select([session.current().channel], [], [], 10)[:1])
print(*seen)
"""
    assert "0 1 1 1 2 1 3 1\n" == in_mounts(FILES, code)


def test_a_mounted_socket_refuses_connections(in_mounts):
    """A connection to a mounted socket of the host is refused inside; with ``volumes`` it reaches
    the host.
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
def test_a_mounted_fifo_has_no_reader(in_mounts, name):
    """A reader of a FIFO on the host is not seen inside, whether the FIFO is a mount or in a
    directory that is mounted read-only.
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
def test_a_lock_inside_does_not_conflict_with_the_hosts(in_mounts, name):
    """A file that is mounted, or is in a directory that is mounted read-only, can be locked on both
    sides at the same time.
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


def test_a_read_only_mount_stays_read_only(in_mounts):
    """A directory that is mounted read-only cannot be written, with and without read_only."""
    code = """
import os
from pytest_sandbox import Container
for read_only in (False, True):
    with Container(read_only=read_only) as c:
        script = ["sh", "-c", 'cat "$0/file"; echo x > "$0/file"', os.path.abspath("at-below")]
        done = c.run(script, capture_output=True, text=True)
        print(done.stdout.strip(), "Read-only file system" in done.stderr)
"""
    assert "below True\nbelow True\n" == in_mounts(FILES, code)


def test_the_report_names_the_refused_socket(in_mounts, tmp_path):
    """A refused connection has a hint with the host's socket and the volume that would pass it."""
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

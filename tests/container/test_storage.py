"""Storage, size and removal of the writable layer."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from subprocess import PIPE

import pytest
from trees import dig as dig_at

from pytest_sandbox import Change, Container, UnsupportedError
from pytest_sandbox.client import cleanup
from pytest_sandbox.linux import loop

pytestmark = pytest.mark.needs("root")

KINDS = [pytest.param({}, id="memory"), pytest.param({"storage": "disk"}, id="disk")]


needs_loop = pytest.mark.needs("loop")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Return the directory of layers on disk."""
    monkeypatch.setenv("PYTEST_SANDBOX_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def layers(home, container):
    session = container.id.rpartition("-")[0]
    directory = home / "writable" / session
    return sorted(os.listdir(directory)) if directory.exists() else []


def gone(directory):
    """Wait until a directory that is removed in the background does not exist."""
    deadline = time.monotonic() + 30
    while directory.exists():
        assert time.monotonic() < deadline, f"{directory} is still there"
        os.sched_yield()
    return True


def fill(container, path, megabytes):
    done = container.run(
        ["dd", "if=/dev/zero", f"of={path}", "bs=1M", f"count={megabytes}"], stderr=PIPE, text=True
    )
    return done.returncode, "No space left" in done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_writes_are_seen_inside_and_nowhere_else(kind, tmp_path):
    """With either storage, diff() lists what is written, and the host's files do not change."""
    with Container(**kind) as c:
        c.write_text("/etc/new", "inside")
        c.run(["rm", "/etc/hostname"], check=True)
        assert ("inside", False) == (c.read_text("/etc/new"), os.path.exists("/etc/new"))
        assert [
            Change("/etc", "modified"),
            Change("/etc/hostname", "deleted"),
            Change("/etc/new", "added"),
        ] == c.diff()
    assert os.path.exists("/etc/hostname")


def test_a_layer_on_disk_is_a_directory_of_the_cache(home):
    """storage="disk" writes to the cache directory and not to memory, and only its owner can read
    it.
    """
    with Container(storage="disk", memory="256m") as c:
        assert (0, False) == fill(c, "/var/big", 300)
        assert 300 << 20 == c.call(lambda: os.stat("/var/big").st_size)
        files = list(home.glob(f"writable/*/{c.id}/**/big"))
        assert ([300 << 20], 0o700) == (
            [one.stat().st_size for one in files],
            files[0].parents[3].stat().st_mode & 0o777,
        )


def test_a_layer_on_disk_is_discarded_with_its_container(home):
    """close() does not wait for the removal of the layer, which happens while the session runs."""
    with Container(storage="disk") as c:
        c.run(
            ["sh", "-c", "mkdir /var/many && cd /var/many && seq 2000 | xargs touch && chmod 0 ."],
            check=True,
        )
        session, identity = c.id.rpartition("-")[0], c.id
        assert identity in layers(home, c)
    assert gone(home / "writable" / session / identity)


def dig():
    """Create nested directories deeper than a function can recurse."""
    os.chdir("/var/tmp")
    for _ in range(3000):
        os.mkdir("d")
        os.chdir("d")


def test_a_deep_layer_on_disk_is_discarded(home):
    """A layer of thousands of levels is removed with its container."""
    with Container(storage="disk") as c:
        c.call(dig)
        session, identity = c.id.rpartition("-")[0], c.id
    assert gone(home / "writable" / session / identity)


def test_a_cleanup_removes_a_deep_layer(tmp_path):
    """The cleanup removes a layer of any depth of a killed session; what cannot be removed is an
    error, and the rest is removed.
    """
    from pytest_sandbox.runtime import storage

    lock = tmp_path / "s.lock"
    for name in ("one", "two"):
        (tmp_path / name / "s").mkdir(parents=True)
    dig_at(tmp_path / "one/s", 3000)
    dig_at(tmp_path / "two/s", 10)
    lock.write_text(f"{tmp_path}/one/s\n{tmp_path}/two/s\n")
    storage.remove(str(lock))
    assert [[], []] == [os.listdir(tmp_path / name) for name in ("one", "two")]


def test_nothing_on_disk_outlives_the_process(home):
    """When the process ends, no directory of its session is left, with or without open
    containers.
    """
    code = (
        "from pytest_sandbox import Container; c = Container(storage='disk').start(); "
        "c.write_text('/x', ''); print(c.id)"
    )
    command = ["python", "-c", code]
    identity = subprocess.run(command, check=True, stdout=PIPE, text=True).stdout.strip()
    assert [] == list(home.glob(f"writable/{identity.rpartition('-')[0]}"))


def test_the_cleanup_removes_layers_of_a_killed_session(home):
    """After SIGKILL of client and launcher, the next cleanup removes the directory, even if it is
    in another home.
    """
    code = (
        "import os, signal; from pytest_sandbox import Container\n"
        "c = Container(storage='disk').start(); c.write_text('/x', ''); print(c.id, flush=True)\n"
        "os.kill(c.handle.launcher.process.pid, signal.SIGKILL)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(["python", "-c", code], check=False, stdout=PIPE, text=True)
    session = done.stdout.strip().rpartition("-")[0]
    directory = home / "writable" / session
    assert (-9, True) == (done.returncode, directory.exists())
    os.environ["PYTEST_SANDBOX_HOME"] = "/nowhere"
    deadline = time.monotonic() + 30
    while directory.exists():
        cleanup.remove_leftovers()
        assert time.monotonic() < deadline
    assert not os.path.exists(cleanup.lock_path(session))


def test_the_cleanup_removes_only_directories_of_the_session(tmp_path):
    """A lock file that names another directory does not cause its removal."""
    (tmp_path / "precious").mkdir()
    lock = Path(cleanup.lock_path("dead-beef"))
    lock.write_text(f"{tmp_path}/precious\n")
    cleanup.remove_leftovers()
    assert (False, True) == (lock.exists(), (tmp_path / "precious").exists())


@pytest.mark.vm
def test_disk_limits_memory_layers():
    """With disk=, writes anywhere on the root beyond the size fail with ENOSPC."""
    with Container(disk="8m") as c:
        assert (0, False) == fill(c, "/tmp/a", 4)
        assert (1, True) == fill(c, "/usr/b", 8)
        c.run(["rm", "/tmp/a", "/usr/b"], check=True)
        assert (0, False) == fill(c, "/root/c", 6)


@needs_loop
def test_disk_limits_layers_on_disk(home):
    """disk= is a file system of that size, whose device and file are removed with the container."""
    with Container(storage="disk", disk="16m") as c:
        assert (0, False) == fill(c, "/tmp/a", 8)
        assert (1, True) == fill(c, "/usr/b", 8)
        c.run(["rm", "/tmp/a", "/usr/b"], check=True)
        assert (0, False) == fill(c, "/root/c", 12)
        assert c.diff()
        image = home / "writable" / c.id.rpartition("-")[0] / c.id / "file-system"
        assert 16 << 20 == image.stat().st_size
        devices = backing_files(image)
        assert 1 == len(devices)
    assert gone(image.parent)
    deadline = time.monotonic() + 30
    while backing_files(image):
        assert time.monotonic() < deadline


def backing_files(image):
    """Return the loop devices of a file that may not exist."""
    found = []
    for name in os.listdir("/sys/block"):
        path = Path(f"/sys/block/{name}/loop/backing_file")
        try:
            found += [name] if path.read_text().startswith(str(image)) else []
        except OSError:
            continue
    return found


@needs_loop
def test_many_limited_layers_at_once():
    """Several containers get loop devices at the same time."""
    some = [Container(storage="disk", disk="4m").start() for _ in range(6)]
    try:
        assert [(1, True)] * 6 == [fill(c, "/tmp/x", 5) for c in some]
    finally:
        for c in some:
            c.close()


@needs_loop
def test_a_disk_limit_without_mkfs_is_refused(home, monkeypatch):
    """Without mkfs.ext4, disk= with storage="disk" is an UnsupportedError with a remedy, and
    nothing is left.
    """
    from pytest_sandbox.runtime import storage
    from pytest_sandbox.runtime.protocol import ErrorCode
    from pytest_sandbox.runtime.step_error import StepError

    monkeypatch.setattr(storage, "_SEARCH", "/nowhere")
    with pytest.raises(StepError, match="mkfs") as caught:
        storage.make(str(home), 1 << 20, session="s", identity="s-1", lock=str(home) + ".lock")
    assert (ErrorCode.DISK_LIMIT_UNAVAILABLE, []) == (caught.value.code, os.listdir(home / "s"))
    with pytest.raises(UnsupportedError, match=r"mkfs.*storage=\"memory\""):
        Container(storage="disk", disk="1k").start()


def test_an_unusable_cache_directory_is_an_error(tmp_path, monkeypatch):
    """The error of a cache directory that cannot be written names its path, and the next container
    with another storage starts.
    """
    (tmp_path / "file").touch()
    monkeypatch.setenv("PYTEST_SANDBOX_HOME", str(tmp_path / "file"))
    from pytest_sandbox import SetupError

    with pytest.raises(SetupError, match=r"Not a directory: .*file/writable"):
        Container(storage="disk").start()
    with Container() as c:
        assert 0 == c.run(["true"]).returncode


@needs_loop
def test_a_loop_device_is_freed_with_its_last_descriptor(tmp_path):
    """attach() returns a device of the file, which is freed with its last descriptor."""
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    path, fd = loop.attach(str(image))
    try:
        assert [os.path.basename(path)] == backing_files(image)
        os.pwrite(fd, b"through", 0)
        os.fsync(fd)
        assert image.read_bytes().startswith(b"through")
    finally:
        os.close(fd)
    deadline = time.monotonic() + 30
    while backing_files(image):
        assert time.monotonic() < deadline

"""Containers of an unprivileged user. These tests run in a machine of tools/vm, as a user."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_sandbox import Container, UnsupportedError
from pytest_sandbox.container.fork import fork_into
from pytest_sandbox.outcome import Exited, Signaled

pytestmark = [pytest.mark.needs("user", "containers"), pytest.mark.vm]


@pytest.fixture
def box():
    with Container() as made:
        yield made


def out(container: Container, *argv: str) -> str:
    return container.run(argv, capture_output=True, text=True, check=True).stdout


def test_processes_have_the_users_uid_and_no_capability(box):
    """Commands and functions run with the user's UID and GID, without a capability."""
    assert f"{os.getuid()}\n" == out(box, "id", "-u")
    assert (os.getuid(), os.getgid()) == box.call(lambda: (os.getuid(), os.getgid()))
    assert "CapEff:\t0000000000000000" in box.call(lambda: Path("/proc/self/status").read_text())


def test_a_function_sees_only_processes_inside(box):
    """The function of ``call`` sees init and itself, and no process of the host."""
    assert 2 == box.call(lambda: len([name for name in os.listdir("/proc") if name.isdigit()]))


@pytest.mark.parametrize("directory", ["~", "/tmp", "/var/tmp"])
def test_writes_stay_inside(box, directory):
    """What a user writes is seen inside, and the host's files do not change."""
    path = Path(directory).expanduser() / f"pytest-sandbox-{os.getpid()}"
    assert "new" == box.call(lambda: (path.write_text("new"), path.read_text())[1])
    assert not path.exists()


def test_directories_of_the_host_can_be_removed(box):
    """A directory of the host can be removed and created again inside; the host's does not
    change.
    """
    directory = Path.home() / "there"
    (directory / "deep").mkdir(parents=True)
    try:
        with Container() as fresh:
            out(
                fresh,
                "sh",
                "-c",
                f"rm -r {directory} && mkdir {directory} && rmdir {directory} && echo x "
                f">{directory}",
            )
        assert (directory / "deep").is_dir()
    finally:
        (directory / "deep").rmdir()
        directory.rmdir()


def test_files_of_a_volume_belong_to_the_user(tmp_path):
    """Files written through a volume stay and belong to the user."""
    with Container(volumes=[f"{tmp_path}:/data"]) as box:
        out(box, "touch", "/data/written")
    assert os.getuid() == (tmp_path / "written").stat().st_uid


def test_files_of_root_cannot_be_changed(box):
    """Files of root appear as those of nobody inside, and are protected as outside."""
    assert 0 != box.run(["touch", "/usr/share/x"], stderr=subprocess.DEVNULL).returncode
    assert 0 != box.run(["sh", "-c", "echo x >>/etc/passwd"], stderr=subprocess.DEVNULL).returncode


@pytest.mark.parametrize(
    ("end", "outcome"),
    [
        (lambda: os._exit(7), Exited(7)),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), Signaled(signal.SIGSEGV)),
        (lambda: os._exit(0), Exited(0)),
    ],
)
def test_a_fork_has_its_own_exit_status(box, end, outcome):
    """The exit status of a twice-forked child is its own, and its pidfd reports the end."""
    child = fork_into(box.handle, None)
    if child is None:
        end()
        os._exit(99)
    assert outcome == child.wait(60)


def test_processes_outside_cannot_be_signalled(box):
    """A process outside cannot be signalled from inside, even if it belongs to the same user."""
    assert (
        box.call(
            lambda: [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if pid > 100]
        )
        == []
    )


def test_a_session_leaves_nothing(tmp_path):
    """Locks, skeleton directories and layers of a session are removed with it."""
    code = (
        "from pytest_sandbox import Container\nwith Container() as c: c.run(['touch', "
        "'/tmp/x'], check=True)\n"
    )
    places = {
        "XDG_RUNTIME_DIR": str(tmp_path / "run"),
        "XDG_CACHE_HOME": str(Path.home() / f"cache-{os.getpid()}"),
    }
    for place in places.values():
        os.mkdir(place, 0o700)
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **places}, check=True)
    left = [
        str(path)
        for place in places.values()
        for path in Path(place).rglob("*")
        if not path.is_dir()
    ]
    layers = [
        str(path) for path in Path(places["XDG_CACHE_HOME"]).glob("pytest-sandbox/writable/*")
    ]
    assert ([], []) == (left, layers)


def test_disk_limit_on_disk_is_refused_with_a_remedy():
    """Without root, disk= with storage="disk" is an error that names where a size can be limited,
    and from which kernel on.
    """
    with pytest.raises(
        UnsupportedError, match=r"^disk=8388608.* only a layer in memory can be limited"
    ) as refused:
        Container(disk="8m", storage="disk").start()
    assert "mkfs" not in str(refused.value)

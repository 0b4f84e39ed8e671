"""Private directories, and their use for state, layers and storage."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pytest_sandbox import SetupError, paths
from pytest_sandbox.client import cleanup
from pytest_sandbox.linux import host_root
from pytest_sandbox.linux.private_directory import make_private
from pytest_sandbox.runtime import privileges, storage


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def test_missing_parents_are_private(tmp_path):
    """Every directory that is created has mode 0700, whatever the umask."""
    before = os.umask(0)
    try:
        made = make_private(str(tmp_path / "home/kept/id"), below=str(tmp_path / "home/kept"))
    finally:
        os.umask(before)
    assert [0o700] * 3 == [mode(tmp_path / name) for name in ("home", "home/kept", "home/kept/id")]
    assert made == make_private(made)


def test_an_existing_directory_becomes_private(tmp_path):
    """A directory of this user that others can read gets mode 0700."""
    os.mkdir(tmp_path / "own", 0o755)
    make_private(str(tmp_path / "own"))
    assert 0o700 == mode(tmp_path / "own")


def test_a_world_writable_directory_is_rejected(tmp_path):
    """Its content may belong to anybody."""
    os.mkdir(tmp_path / "open")
    os.chmod(tmp_path / "open", 0o777)
    with pytest.raises(
        PermissionError, match=r"other users may write to it \(mode 0777\): remove it"
    ):
        make_private(str(tmp_path / "open"))


def test_a_symbolic_link_is_rejected(tmp_path):
    """It may refer to any directory."""
    os.mkdir(tmp_path / "there")
    os.symlink("there", tmp_path / "link")
    with pytest.raises(NotADirectoryError, match="it is not a directory"):
        make_private(str(tmp_path / "link"))


@pytest.mark.needs("root")
def test_a_directory_of_another_user_is_rejected(tmp_path):
    """The error has the owner, and what to do."""
    os.mkdir(tmp_path / "theirs", 0o700)
    os.chown(tmp_path / "theirs", 4321, 4321)
    with pytest.raises(PermissionError, match=r"it belongs to UID 4321.*: remove it"):
        make_private(str(tmp_path / "theirs"))


def directories_of(uid: int, monkeypatch: pytest.MonkeyPatch, runtime: str) -> tuple[str, ...]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    monkeypatch.setattr(paths.os, "geteuid", lambda: uid)
    found = paths.states()
    monkeypatch.undo()
    return found


@pytest.mark.parametrize(
    ("uid", "runtime", "first"),
    [
        (0, "/run/user/1000", ["/run/pytest-sandbox"]),
        (1000, "/x", ["/x/pytest-sandbox", "/run/user/1000/pytest-sandbox"]),
        (1000, "", ["/run/user/1000/pytest-sandbox"]),
        (1000, "relative", ["/run/user/1000/pytest-sandbox"]),
        (1000, "/run/user/1000", ["/run/user/1000/pytest-sandbox"]),
    ],
)
def test_the_order_of_state_directories(monkeypatch, uid, runtime, first):
    """Root ignores XDG_RUNTIME_DIR, and others ignore a relative one."""
    shared = [f"{place}/pytest-sandbox-{uid}" for place in ("/tmp", "/dev/shm", "/var/tmp")]
    assert (*first, *shared) == directories_of(uid, monkeypatch, runtime)


@pytest.mark.needs("root")
def test_a_state_directory_of_another_user_is_skipped(tmp_path, monkeypatch):
    """The next directory is used, and the other user's is left alone."""
    theirs, own = tmp_path / "theirs", tmp_path / "own"
    os.mkdir(theirs, 0o755)
    os.chown(theirs, 4321, 4321)
    monkeypatch.setattr(paths, "states", lambda: (str(theirs), str(own)))
    assert str(own) == cleanup.state_directory()
    assert (4321, 0o755) == (os.stat(theirs).st_uid, mode(theirs))


def test_without_a_usable_state_directory(tmp_path, monkeypatch):
    """The error names each directory that was tried, what is wrong with it, and what to do."""
    places = [str(tmp_path / name) for name in "ab"]
    for place in places:
        Path(place).touch()
    monkeypatch.setattr(paths, "states", lambda: tuple(places))
    with pytest.raises(SetupError) as caught:
        cleanup.state_directory()
    assert all(f"{place}: it is not a directory" in str(caught.value) for place in places)
    assert "XDG_RUNTIME_DIR" not in str(caught.value)


def test_sessions_are_found_in_every_state_directory(tmp_path, monkeypatch):
    """A session that began while the first directory was full is found after it is usable again."""
    first, second = tmp_path / "first", tmp_path / "second"
    for place in (first, second):
        place.mkdir(0o700)
    (second / "1-a.lock").touch()
    (second / "1-a").mkdir()
    monkeypatch.setattr(paths, "states", lambda: (str(first), str(second)))
    assert {"1-a": str(second / "1-a")} == cleanup.sessions()
    assert str(second / "1-a.lock") == cleanup.lock_path("1-a")
    assert str(first / "2-b.lock") == cleanup.lock_path("2-b")


@pytest.mark.needs("root")
def test_a_layer_directory_of_another_user_is_skipped(tmp_path, monkeypatch):
    """The next one is used; if there is none, the error has the reason for each."""
    monkeypatch.setenv("PYTEST_SANDBOX_HOME", str(tmp_path))
    monkeypatch.setattr(host_root, "tmpfs_takes_attributes", lambda: False)
    refused = []
    monkeypatch.setattr(
        host_root, "takes_attributes", lambda directory: not refused.append(directory)
    )
    os.mkdir(tmp_path / "writable", 0o777)
    os.chown(tmp_path / "writable", 4321, 4321)
    assert f"/var/tmp/pytest-sandbox-{os.geteuid()}" == privileges._layers_directory()
    os.rmdir(f"/var/tmp/pytest-sandbox-{os.geteuid()}")
    monkeypatch.setattr(host_root, "takes_attributes", lambda _directory: False)
    with pytest.raises(
        OSError,
        match=r"writable: it belongs to UID 4321.*no user attributes.*Set PYTEST_SANDBOX_HOME",
    ):
        privileges._layers_directory()
    os.rmdir(f"/var/tmp/pytest-sandbox-{os.geteuid()}")


def test_the_parents_of_a_disk_layer_are_private(tmp_path):
    """Other users cannot reach setuid programs and devices in layers."""
    before = os.umask(0)
    try:
        place = storage.make(
            str(tmp_path / "home/writable"),
            None,
            session="s",
            identity="s-1",
            lock=str(tmp_path / "s.lock"),
        )
    finally:
        os.umask(before)
    assert [0o700] * 4 == [
        mode(tmp_path / name)
        for name in ("home", "home/writable", "home/writable/s", "home/writable/s/s-1")
    ]
    place.remove()

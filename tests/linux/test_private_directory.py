"""Private directories, and their use for state, layers and storage."""

from __future__ import annotations

import os
import stat

import pytest

from pytest_sandbox import paths
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
    with pytest.raises(
        PermissionError, match=r"belongs to the user 4321.* XDG_RUNTIME_DIR and PYTEST_SANDBOX_HOME"
    ):
        make_private(str(tmp_path / "theirs"))


@pytest.mark.needs("root")
def test_a_state_directory_of_another_user_is_rejected(tmp_path, monkeypatch):
    """Sessions do not use it."""
    state = tmp_path / "pytest-sandbox-0"
    os.mkdir(state, 0o777)
    os.chown(state, 4321, 4321)
    monkeypatch.setattr(paths, "state", lambda: str(state))
    with pytest.raises(PermissionError, match="belongs to the user 4321"):
        cleanup.state_directory()


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
    assert f"/var/tmp/pytest-sandbox-{os.geteuid()}" == privileges._layers()
    os.rmdir(f"/var/tmp/pytest-sandbox-{os.geteuid()}")
    monkeypatch.setattr(host_root, "takes_attributes", lambda _directory: False)
    with pytest.raises(
        OSError,
        match=r"writable: it belongs to the user 4321.*no user attributes.*Set PYTEST_SANDBOX_HOME",
    ):
        privileges._layers()
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

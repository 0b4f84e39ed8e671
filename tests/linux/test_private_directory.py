"""Directories of this user alone, below directories where everybody may make some."""

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


def test_a_directory_and_its_parents_are_made_for_this_user_alone(tmp_path):
    """Every directory on the way that was not there is closed to others, whatever the umask."""
    before = os.umask(0)
    try:
        made = make_private(str(tmp_path / "home/kept/id"), below=str(tmp_path / "home/kept"))
    finally:
        os.umask(before)
    assert [0o700] * 3 == [mode(tmp_path / name) for name in ("home", "home/kept", "home/kept/id")]
    assert made == make_private(made)


def test_an_open_directory_of_ones_own_is_closed(tmp_path):
    """One that others may read is closed to them."""
    os.mkdir(tmp_path / "own", 0o755)
    make_private(str(tmp_path / "own"))
    assert 0o700 == mode(tmp_path / "own")


def test_a_directory_that_others_may_write_to_is_refused(tmp_path):
    """What is in there may be anybody's."""
    os.mkdir(tmp_path / "open")
    os.chmod(tmp_path / "open", 0o777)
    with pytest.raises(
        PermissionError, match=r"other users may write to it \(mode 0777\): remove it"
    ):
        make_private(str(tmp_path / "open"))


def test_a_link_is_refused(tmp_path):
    """It may lead anywhere."""
    os.mkdir(tmp_path / "there")
    os.symlink("there", tmp_path / "link")
    with pytest.raises(NotADirectoryError, match="it is not a directory"):
        make_private(str(tmp_path / "link"))


@pytest.mark.needs("root")
def test_a_directory_of_another_user_is_refused(tmp_path):
    """The error says whose it is, and what to do."""
    os.mkdir(tmp_path / "theirs", 0o700)
    os.chown(tmp_path / "theirs", 4321, 4321)
    with pytest.raises(
        PermissionError, match=r"belongs to the user 4321.* XDG_RUNTIME_DIR and PYTEST_SANDBOX_HOME"
    ):
        make_private(str(tmp_path / "theirs"))


@pytest.mark.needs("root")
def test_a_state_directory_that_another_user_made_first(tmp_path, monkeypatch):
    """Sessions do not use it."""
    state = tmp_path / "pytest-sandbox-0"
    os.mkdir(state, 0o777)
    os.chown(state, 4321, 4321)
    monkeypatch.setattr(paths, "state", lambda: str(state))
    with pytest.raises(PermissionError, match="belongs to the user 4321"):
        cleanup.state_directory()


@pytest.mark.needs("root")
def test_a_layer_directory_that_another_user_made_first(tmp_path, monkeypatch):
    """Another one is chosen, and where there is none, the error says why each was refused."""
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
        match=r"writable: it belongs to the user 4321.*no user attributes.*Set PYTEST_SANDBOX_HOME",
    ):
        privileges._layers_directory()
    os.rmdir(f"/var/tmp/pytest-sandbox-{os.geteuid()}")


def test_the_parents_of_a_layer_on_disk_are_closed(tmp_path):
    """Layers hold setuid programs and devices: nobody else comes near them."""
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

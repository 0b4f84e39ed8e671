"""Saved layers: complete copies or none, sparse files, and no unfinished copies."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from pytest_sandbox import Container, SandboxError
from pytest_sandbox.container import saved_layers
from pytest_sandbox.container.container import start_saved
from pytest_sandbox.runtime import storage

pytestmark = pytest.mark.needs("containers")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Return the directory of saved layers."""
    monkeypatch.setenv("PYTEST_SANDBOX_HOME", str(tmp_path / "home"))
    return tmp_path / "home/kept"


def begin_and_die(path):
    """Start to write a directory in a process that is killed."""
    code = f"""
import os, signal
from pytest_sandbox.runtime import storage
unfinished, lock = storage.make_unfinished("{path}")
os.makedirs(f"{{unfinished}}/0/upper/deep")
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert -9 == subprocess.run([sys.executable, "-c", code], check=False).returncode


def test_an_unfinished_copy_of_a_killed_process_is_removed(home):
    """An unfinished copy is removed when its process has ended; copies in progress, complete ones
    and other files stay.
    """
    home.mkdir(parents=True)
    begin_and_die(home / "dead")
    (home / "whole").mkdir()
    (home / "notes.txt").touch()
    unfinished, lock = storage.make_unfinished(str(home / "alive"))
    try:
        assert 4 == len(os.listdir(home))
        storage.remove_unfinished(str(home))
        assert sorted([os.path.basename(unfinished), "notes.txt", "whole"]) == sorted(
            os.listdir(home)
        )
    finally:
        os.close(lock)


def test_save_removes_unfinished_copies(home):
    """save() removes unfinished copies of killed processes, and closes the directory to other
    users.
    """
    home.mkdir(parents=True)
    begin_and_die(home / "dead")
    with Container() as container:
        one = saved_layers.save(container.handle)
    assert ([one.id], 0o700) == (os.listdir(home), home.stat().st_mode & 0o777)


def test_a_copy_that_fails_leaves_nothing(home, monkeypatch):
    """An error while a layer is copied is a SandboxError with the directory, and no part of the
    copy stays.
    """

    def fail(*_arguments, **_keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saved_layers, "copy_tree", fail)
    with (
        Container() as container,
        pytest.raises(SandboxError, match=f"cannot be saved in {home}.*No space left"),
    ):
        saved_layers.save(container.handle)
    assert [] == os.listdir(home)


def test_damaged_layers_are_not_listed(home):
    """Layers without a readable description, and unfinished ones, are not listed."""
    for name, text in (
        ("a", "{"),
        ("b", "[]"),
        ("c", json.dumps({"id": "c", "unknown": 1})),
        ("d.12", json.dumps(["d"])),
    ):
        (home / name).mkdir(parents=True)
        (home / name / "kept.json").write_text(text)
    (home / "d.12/kept.json").write_text(json.dumps({"id": "d", "label": "", "time": 1.0}))
    assert [] == saved_layers.list_saved()
    with pytest.raises(SandboxError, match="there is no saved layer"):
        start_saved("../kept/a")


def test_sparse_files_stay_sparse(home):
    """A hole of gigabytes in a file takes no space in the saved layer."""
    with Container(memory=None) as container:
        container.run(["truncate", "-s", "2G", "/var/tmp/sparse"], check=True)
        one = saved_layers.save(container.handle)
    (found,) = home.glob("*/*/upper/**/sparse")
    assert (2 << 30, True) == (found.stat().st_size, found.stat().st_blocks * 512 < 1 << 20)
    one.remove()
    assert [] == os.listdir(home)


def test_fifos_and_sockets_are_not_opened():
    """FIFOs and sockets are copied without being opened, or skipped."""
    with Container() as container:
        script = (
            "import os, socket; os.mkfifo('/var/tmp/fifo'); "
            "socket.socket(socket.AF_UNIX).bind('/var/tmp/socket')"
        )
        container.run([sys.executable, "-c", script], check=True)
        one = saved_layers.save(container.handle)
    with start_saved(one.id) as again:
        assert "fifo" in again.listdir("/var/tmp")
        assert "socket" not in again.listdir("/var/tmp")


def test_a_deep_tree_is_saved_and_removed(home):
    """A layer of any depth can be saved, started from, and removed."""

    def dig():
        os.chdir("/var/tmp")
        for _ in range(1200):
            os.mkdir("d")
            os.chdir("d")

    with Container() as container:
        container.call(dig)
        one = saved_layers.save(container.handle)
    with start_saved(one.id) as again:
        assert "d" in again.listdir("/var/tmp")
    one.remove()
    assert [] == os.listdir(home)

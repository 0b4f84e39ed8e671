"""Files of an unprivileged user in the store: only this user can read them, and they are removed
with the image. Runs in a machine of tools/vm.
"""

from __future__ import annotations

import os
import signal
import stat
import tempfile
from pathlib import Path

import pytest

from pytest_sandbox import Container
from pytest_sandbox.client import cleanup, session
from pytest_sandbox.container import saved_layers

pytestmark = [pytest.mark.needs("user", "containers", "busybox"), pytest.mark.vm]

#: A directory of UID 5 inside, which is mapped to another UID outside, with mode 0700.
WRITE = (
    "mkdir /five && echo text >/five/file && busybox chown -R 5:5 /five && busybox chmod 700 /five"
)


@pytest.fixture
def home(monkeypatch):
    """A store for this test, on a disk."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        monkeypatch.setenv("PYTEST_SANDBOX_HOME", f"{directory}/home")
        yield Path(directory, "home")


@pytest.fixture
def image(home, busybox):
    """A stored image with a shell in it."""
    return busybox()


def owners(directory: Path) -> set[int]:
    return {
        os.lstat(os.path.join(where, name)).st_uid
        for where, directories, files in os.walk(directory)
        for name in (*directories, *files)
    }


def files(directory: Path) -> list[str]:
    """Return the files below a directory, except the store's index and lock."""
    found = [path for path in directory.rglob("*") if not path.is_dir() or path.is_symlink()]
    return sorted(
        str(path.relative_to(directory))
        for path in found
        if path.name not in {"index.json", "lock"}
    )


def test_the_store_belongs_to_its_user_and_is_empty_after_rmi(home, image):
    """All files of the store belong to its user, its mode is 0700, and rmi removes the image's
    files.
    """
    assert ({os.getuid()}, 0o700) == (owners(home), stat.S_IMODE(home.stat().st_mode))
    image.remove()
    assert [] == files(home)


def test_commit_includes_private_directories_of_other_uids(home, image):
    """A named commit contains them, belongs to the invoking user, and can be removed."""
    with Container(image=image) as container:
        container.run(["/bin/sh", "-c", WRITE], check=True)
        made = container.commit("mine:1")
    assert {os.getuid()} == owners(home / "layers")
    with Container(image="mine:1") as container:
        assert (
            "text\n"
            == container.run(
                ["/bin/cat", "/five/file"], capture_output=True, text=True, check=True
            ).stdout
        )
    made.remove()
    image.remove()
    assert [] == [name for name in files(home) if not name.startswith("writable/")]


def test_saved_layers_include_private_directories_of_other_uids(home, image):
    """A saved layer contains them and can be removed."""
    with Container(image=image) as container:
        container.run(["/bin/sh", "-c", WRITE], check=True)
        one = saved_layers.save(container.handle)
    assert ({os.getuid()}, "text\n") == (
        owners(Path(one.directory)),
        Path(one.directory, "0/upper/five/file").read_text(),
    )
    one.remove()
    assert not Path(one.directory).exists()


def test_cleanup_removes_private_directories_of_other_uids(home, image):
    """The next session removes the layer on disk of a killed launcher, with files of any UID."""
    container = Container(image=image, storage="disk").start()
    container.run(["/bin/sh", "-c", WRITE], check=True)
    directory = home / "writable" / session.current().name
    assert directory.is_dir()
    launcher = session.current().process
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    container.close()
    cleanup.remove_leftovers()
    assert not directory.exists()

"""What somebody who is not root leaves on the disk: its own alone, closed to others, and gone with
the image. Runs in a machine of tools/vm.
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

#: A directory of another user inside, whose number is another one outside too, and nobody else may
#: enter it.
WRITE = (
    "mkdir /five && echo text >/five/file && busybox chown -R 5:5 /five && busybox chmod 700 /five"
)


@pytest.fixture
def home(monkeypatch):
    """A store of the test's own, on a disk."""
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
    """The files below a directory, but for the store's own index and lock."""
    found = [path for path in directory.rglob("*") if not path.is_dir() or path.is_symlink()]
    return sorted(
        str(path.relative_to(directory))
        for path in found
        if path.name not in {"index.json", "lock"}
    )


def test_a_stored_image_is_its_users_alone_and_goes_with_it(home, image):
    """All of the store belongs to who made it, others may not look, and after rmi there is nothing
    of the image.
    """
    assert ({os.getuid()}, 0o700) == (owners(home), stat.S_IMODE(home.stat().st_mode))
    image.remove()
    assert [] == files(home)


def test_what_another_user_inside_closed_is_committed(home, image):
    """A commit with a name has it, belongs to who made it, and can be removed."""
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


def test_what_another_user_inside_closed_is_kept(home, image):
    """A kept layer has it too, and can be removed."""
    with Container(image=image) as container:
        container.run(["/bin/sh", "-c", WRITE], check=True)
        one = saved_layers.save(container.handle)
    assert ({os.getuid()}, "text\n") == (
        owners(Path(one.directory)),
        Path(one.directory, "0/upper/five/file").read_text(),
    )
    one.remove()
    assert not Path(one.directory).exists()


def test_what_another_user_inside_closed_is_swept(home, image):
    """A launcher that was killed leaves a layer on disk that the next session removes, whoever has
    it.
    """
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

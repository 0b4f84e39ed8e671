"""Containers and root file systems for tests. Each conftest.py imports the fixtures it uses."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from pytest_sandbox import Container, Network

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["box", "busybox_root", "make_busybox_root", "net"]


@pytest.fixture(scope="module")
def box() -> Iterator[Container]:
    """Yield a container with default settings, which the tests of a module share."""
    with Container() as container:
        yield container


@pytest.fixture
def net() -> Iterator[Network]:
    """Yield a network without containers."""
    with Network() as network:
        yield network


def make_busybox_root(directory: Path) -> Path:
    """Make a root file system of one static program, without /proc, /sys and /dev."""
    for name in ("bin", "etc", "tmp", "root", "home/ann"):
        (directory / name).mkdir(parents=True)
    (directory / "tmp").chmod(0o1777)
    program = shutil.which("busybox") or pytest.skip("needs busybox (Debian: busybox-static)")
    shutil.copy(program, directory / "bin/busybox")
    applets = subprocess.run(
        [program, "--list"], check=True, capture_output=True, text=True
    ).stdout.split()
    for applet in applets:
        if applet != "busybox":
            os.symlink("busybox", directory / "bin" / applet)
    (directory / "etc/passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\nann:x:1234:2345:Ann:/home/ann:/bin/sh\n"
    )
    (directory / "etc/group").write_text("root:x:0:\npeople:x:2345:\nstaff:x:777:ann,bob\n")
    return directory


@pytest.fixture(scope="session")
def busybox_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a root file system, which tests share."""
    return make_busybox_root(tmp_path_factory.mktemp("busybox") / "root")

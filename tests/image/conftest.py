"""Every test of images has a store of its own."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from tarballs import Made, directory, entry, layer, link

from pytest_sandbox import Image
from pytest_sandbox.image.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

APPLETS = (
    "sh",
    "cat",
    "ls",
    "id",
    "env",
    "pwd",
    "echo",
    "touch",
    "rm",
    "mkdir",
    "true",
    "sleep",
    "test",
    "stat",
    "mv",
    "seq",
    "kill",
)


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store of the test's own."""
    monkeypatch.setenv("PYTEST_SANDBOX_HOME", str(tmp_path / "home"))
    return Store()


def busybox_layer() -> bytes:
    """Return a layer with busybox, a user and a world-writable /tmp."""
    with open("/bin/busybox", "rb") as file:
        program = file.read()
    users = b"root:x:0:0:root:/root:/bin/sh\nme:x:1000:1001:Me:/home/me:/bin/sh\n"
    return layer(
        directory("bin"),
        entry("bin/busybox", program, mode=0o755),
        *(link(f"bin/{name}", "busybox") for name in APPLETS),
        directory("etc"),
        entry("etc/passwd", users),
        entry("etc/group", b"root:x:0:\nmine:x:1001:\nextra:x:44:me\n"),
        directory("tmp", mode=0o1777),
        directory("root", mode=0o700),
    )


@pytest.fixture
def busybox(tmp_path: Path) -> Callable[..., Image]:
    """Load an image with busybox, these layers above it and this configuration."""

    def load(*layers: bytes, name: str = "busybox:1", **config: object) -> Image:
        made = Made(
            [busybox_layer(), *layers],
            config,
            compress=bytes,
            media="application/vnd.oci.image.layer.v1.tar",
        )
        where = tmp_path / f"layout-{len(os.listdir(tmp_path))}"
        return Image.load(made.write(where), name=name)

    return load


@pytest.fixture
def umoci_image(tmp_path: Path) -> Path:
    """An OCI layout with busybox in two layers, written by umoci."""
    where = tmp_path / "umoci"
    subprocess.run(["umoci", "init", "--layout", where], check=True)
    subprocess.run(["umoci", "new", "--image", f"{where}:latest"], check=True)
    (tmp_path / "greeting").write_text("hello")
    for source, target in (
        ("/bin/busybox", "/bin/busybox"),
        (tmp_path / "greeting", "/etc/greeting"),
    ):
        subprocess.run(
            ["umoci", "insert", "--image", f"{where}:latest", source, target], check=True
        )
    return where

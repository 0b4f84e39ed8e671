"""The user of a function in ``call``: ``user``, else the image's USER, else the invoking user."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tarballs import Made, directory, entry, layer

from pytest_sandbox import Container, Image, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.needs("containers", "root")

SUITE = """
import os

def test_user():
    assert {expected} == (os.getuid(), os.getgid())
    assert "image\\n" == open("/etc/origin").read()
"""


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Image]:
    """Return a function that loads an image with a user "me" and this configuration."""
    monkeypatch.setenv("PYTEST_SANDBOX_HOME", str(tmp_path / "home"))

    def load(**config: object) -> Image:
        content = layer(
            directory("etc"),
            entry("etc/origin", b"image\n"),
            entry("etc/passwd", b"root:x:0:0::/root:/bin/sh\nme:x:1000:1001::/home/me:/bin/sh\n"),
            entry("etc/group", b"root:x:0:\nmine:x:1001:\nextra:x:44:me\n"),
            directory("tmp", mode=0o1777),
        )
        made = Made([content], config, media="application/vnd.oci.image.layer.v1.tar+gzip")
        return Image.load(made.write(tmp_path / "layout"), name="users:1")

    return load


def identity() -> tuple[int, int, list[int]]:
    return os.getuid(), os.getgid(), sorted(os.getgroups())


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("me", (1000, 1001, [44])),
        ("1000", (1000, 1001, [44])),
        ("7:8", (7, 8, [])),
        ("me:extra", (1000, 44, [])),
    ],
)
def test_call_runs_as_the_images_user(load, user, expected):
    """A USER by name or number is looked up in the image's files, with its groups."""
    with Container(image=load(User=user)) as container:
        assert expected == container.call(identity)


def test_the_setting_overrides_the_images_user(load):
    """``user=`` is used by ``call`` in place of the image's USER."""
    with Container(image=load(User="me"), user="5:6") as container:
        assert (5, 6, []) == container.call(identity)


def test_without_a_user_call_runs_as_the_invoking_user(load):
    """An image without USER leaves ``call`` the user and the groups of the caller."""
    with Container(image=load()) as container:
        assert identity() == container.call(identity)


def test_an_unknown_user_of_the_image_is_an_error(load):
    """A USER that the image does not have is named by the error of ``call``."""
    with (
        Container(image=load(User="nobody-here")) as container,
        pytest.raises(SettingsError, match="nobody-here"),
    ):
        container.call(identity)


def test_call_and_run_have_the_same_capabilities(load):
    """A function that runs as the image's USER has no capabilities."""
    with Container(image=load(User="me")) as container:
        status = container.call(Path("/proc/self/status").read_text)
        assert "CapEff:\t0000000000000000\n" in status


def test_a_test_body_runs_as_the_invoking_user(load, tmp_path):
    """The image's USER does not change the user of a test that runs inside."""
    image = load(User="me")
    path = tmp_path / "test_body.py"
    path.write_text(SUITE.format(expected=(os.getuid(), os.getgid())))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", f"--sandbox-image={image.reference}", "--sandbox", path],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert (0, True) == (done.returncode, "1 passed" in done.stdout), done.stdout

"""A directory that is used as an image and replaced at the same path."""

from __future__ import annotations

import os
import select
import shutil

import pytest

from pytest_sandbox import Container
from pytest_sandbox.client import session

pytestmark = [pytest.mark.needs("containers"), pytest.mark.vm]


def build(root: str, version: str) -> None:
    shutil.rmtree(root, ignore_errors=True)
    os.makedirs(f"{root}/etc")
    with open(f"{root}/etc/version", "w") as file:
        file.write(version)


@pytest.mark.parametrize("is_link", [False, True])
def test_a_container_uses_the_current_directory_of_a_path(tmp_path, is_link):
    """A prewarmed container of the replaced directory is not used."""
    seen = []
    for number in range(4):
        root = str(tmp_path / (f"build-{number}" if is_link else "root"))
        build(root, str(number))
        if is_link:
            (tmp_path / "new").symlink_to(root)
            os.replace(tmp_path / "new", tmp_path / "root")
        with Container(image=str(tmp_path / "root")) as c:
            seen.append(c.read_text("/etc/version"))
            assert select.select([session.current().channel], [], [], 10)[0], (
                "the next container is prewarmed"
            )
    assert ["0", "1", "2", "3"] == seen

"""A quick part of this project's own tests, each in a container (docs/reference/nested.md)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from capabilities import has

pytestmark = [pytest.mark.needs("root", "plain_root", "containers"), pytest.mark.slow]

#: Tests that run in every container.
PLAIN = (
    "tests/test_settings.py tests/test_interface.py tests/linux/test_seccomp.py "
    "tests/linux/test_userns.py tests/image/test_reference.py"
)
#: Tests that create containers, commit and start images, and run pytest.
MAKING = (
    "tests/container/test_exceptions.py tests/image/test_run.py "
    "tests/plugin/test_image_body.py tests/linux/test_syscall_batch.py tests/cli/test_images.py"
)
#: Programs that all of these need, and programs that a few need.
NEEDED = ("busybox", "unshare", "setpriv")
OPTIONAL = (
    "assembler_x86_64",
    "assembler_aarch64",
    "aarch64-linux-gnu-as",
    "aarch64-linux-gnu-ld",
    "qemu-aarch64-static",
)
#: A layer with whiteouts cannot be stored on an overlay, such as the root of a container.
DELETING = "any_number_of_layers"


def passed(*options: str) -> int:
    """Run tests with --sandbox, and return how many passed. Raises :class:`AssertionError` if one
    fails.
    """
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--sandbox",
        "--timeout=60",
        *options,
    ]
    done = subprocess.run(
        command,
        cwd=Path(__file__).parents[1],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == done.returncode, done.stdout[-3000:]
    return int(re.search(r"(\d+) passed", done.stdout)[1])


def test_tests_pass_in_containers():
    """Tests of settings, policies and names pass in a container each."""
    assert passed("--host-has=root", *PLAIN.split()) > 450


@pytest.mark.needs(*NEEDED)
def test_tests_that_create_containers_pass_in_privileged_containers():
    """Tests that create containers, images and pytest sessions pass in privileged containers."""
    found = ["root", "containers", *NEEDED, *filter(has, OPTIONAL)]
    options = (
        "-o",
        "sandbox_privileged=true",
        f"--host-has={','.join(found)}",
        "-k",
        f"not {DELETING}",
    )
    assert passed(*options, *MAKING.split()) > 70

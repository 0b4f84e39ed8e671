"""The project's own suite, each test in a container of its own: what docs/reference/nested.md says
of it, by a part that is quick.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from capabilities import has

pytestmark = [pytest.mark.needs("root", "plain_root", "containers"), pytest.mark.slow]

#: Tests that need nothing of the host but what every container has.
PLAIN = (
    "tests/test_settings.py tests/test_interface.py tests/linux/test_seccomp.py "
    "tests/linux/test_userns.py tests/image/test_reference.py"
)
#: Tests that make containers by themselves, commit and start images, run pytest, and look at the
#: host.
MAKING = (
    "tests/container/test_exceptions.py tests/image/test_run.py "
    "tests/plugin/test_image_body.py tests/linux/test_syscall_batch.py tests/cli/test_images.py"
)
#: Programs that these need, and some that a few of them do.
NEEDED = ("busybox", "unshare", "setpriv")
OPTIONAL = (
    "assembler_x86_64",
    "assembler_aarch64",
    "aarch64-linux-gnu-as",
    "aarch64-linux-gnu-ld",
    "qemu-aarch64-static",
)
#: Layers that delete something cannot be stored on an overlay, as a container's root is.
DELETING = "any_number_of_layers"


def passed(*options: str) -> int:
    """How many tests of the suite have passed under --sandbox; none may fail."""
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


def test_what_needs_no_container_runs_in_one():
    """Settings, policies and names are tested inside as outside, one container for each test."""
    assert passed("--host-has=root", *PLAIN.split()) > 450


@pytest.mark.needs(*NEEDED)
def test_what_makes_containers_runs_in_a_privileged_one():
    """Containers in a container: commands, exceptions, images, whole sessions of pytest."""
    found = ["root", "containers", *NEEDED, *filter(has, OPTIONAL)]
    options = (
        "-o",
        "sandbox_privileged=true",
        f"--host-has={','.join(found)}",
        "-k",
        f"not {DELETING}",
    )
    assert passed(*options, *MAKING.split()) > 70

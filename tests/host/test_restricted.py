"""Hosts that restrict user namespaces: the error for an unprivileged user names what restricts
them, and what helps.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from pytest_sandbox import Container

pytestmark = [pytest.mark.needs("containers"), pytest.mark.vm]

#: Tries to start a container, and prints what it is told.
TRY = """
from pytest_sandbox import Container, UnsupportedError
try:
    Container().start()
except UnsupportedError as error:
    print(error)
"""
#: Gives up what makes root able to do without a user namespace.
UNPRIVILEGED = (
    "setpriv",
    "--bounding-set=-sys_admin",
    "--inh-caps=-sys_admin",
    sys.executable,
    "-c",
    TRY,
)


def told(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


@pytest.mark.needs("root", "setpriv", "unshare")
def test_a_limit_of_none():
    """With user.max_user_namespaces=0 the parameter is named, with the command that raises it."""
    script = 'echo 0 >/proc/sys/user/max_user_namespaces && exec "$@"'
    answer = told("unshare", "--user", "--map-root-user", "sh", "-c", script, "sh", *UNPRIVILEGED)
    assert "a container without root is not supported here." in answer
    assert "sysctl -w user.max_user_namespaces=15000" in answer


def test_inside_a_container_of_dockers_default_profile():
    """Where a seccomp filter denies them, the outer container's option that lets them is named."""
    with Container() as outer:
        answer = outer.run(
            [sys.executable, "-c", TRY], capture_output=True, text=True, check=True
        ).stdout
    assert "a container without root is not supported here." in answer
    assert "seccomp" in answer


@pytest.mark.needs("root", "throwaway", "setpriv")
def test_the_switch_of_debian():
    """With kernel.unprivileged_userns_clone=0, which Debian's kernels have, that switch is
    named.
    """
    switch = "/proc/sys/kernel/unprivileged_userns_clone"
    script = f'echo 0 >{switch}; "$@"; status=$?; echo 1 >{switch}; exit $status'
    answer = told(
        "sh",
        "-c",
        script,
        "sh",
        "setpriv",
        "--reuid=1000",
        "--regid=1000",
        "--clear-groups",
        sys.executable,
        "-c",
        TRY,
    )
    assert "sysctl -w kernel.unprivileged_userns_clone=1" in answer


@pytest.mark.needs("root", "plain_root")
def test_inside_a_container_that_covers_parts_of_proc():
    """Where the kernel gives no new /proc, the outer container's options that uncover it are
    named.
    """
    with Container(security_opt=["seccomp=unconfined"]) as outer:
        answer = outer.run(
            [sys.executable, "-c", TRY], capture_output=True, text=True, check=True
        ).stdout
    assert "a container in this container is not supported here." in answer
    assert "systempaths=unconfined" in answer


@pytest.mark.needs("root", "plain_root")
def test_a_privileged_container_makes_containers():
    """With what --privileged gives, containers can be made inside of a container."""
    make = (
        "from pytest_sandbox import Container\nwith Container() as c: print(c.run(['echo', "
        "'inside'], capture_output=True, text=True).stdout)"
    )
    with Container(privileged=True) as outer:
        assert (
            "inside\n\n"
            == outer.run(
                [sys.executable, "-c", make], capture_output=True, text=True, check=True
            ).stdout
        )


@pytest.mark.needs("root", "plain_root")
def test_half_of_roots_power_is_none():
    """A container with SYS_ADMIN and nothing else that it takes is told what its outer container
    lacks, as one without is.
    """
    with Container(security_opt=["seccomp=unconfined"], cap_add=["SYS_ADMIN"]) as outer:
        answer = outer.run(
            [sys.executable, "-c", TRY], capture_output=True, text=True, check=True
        ).stdout
    assert "a container in this container is not supported here." in answer
    assert "--privileged" in answer

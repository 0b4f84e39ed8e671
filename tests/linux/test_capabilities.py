"""Capability masks, docker's rules for --cap-add and --cap-drop, and the kernel's capabilities."""

from __future__ import annotations

import pytest

from pytest_sandbox.errors import SettingsError
from pytest_sandbox.linux import capabilities

DOCKER = capabilities.DOCKER_DEFAULT


@pytest.mark.parametrize(
    ("add", "drop", "privileged", "expected"),
    [
        ((), (), False, DOCKER),
        (("NET_ADMIN",), (), False, DOCKER | 1 << 12),
        (("cap_net_admin",), (), False, DOCKER | 1 << 12),
        ((), ("CHOWN",), False, DOCKER & ~1),
        ((), ("ALL",), False, 0),
        (("CHOWN",), ("ALL",), False, 1),
        (("ALL",), (), False, capabilities.ALL),
        (("ALL",), ("CHOWN",), False, capabilities.ALL & ~1),
        (("CHOWN",), ("CHOWN",), False, DOCKER),
        ((), (), True, capabilities.ALL),
    ],
)
def test_resolve(add, drop, privileged, expected):
    """--cap-add, --cap-drop and --privileged give the same set as docker."""
    assert expected == capabilities.resolve(add, drop, privileged=privileged)


def test_docker_default():
    """It is the mask in /proc/self/status of docker's containers, of 14 capabilities."""
    assert (0xA80425FB, 14) == (DOCKER, len(capabilities.names(DOCKER)))
    assert ("CAP_CHOWN", "CAP_SETFCAP") == (
        capabilities.names(DOCKER)[0],
        capabilities.names(DOCKER)[-1],
    )


def test_an_unknown_capability_is_rejected():
    """The error has the setting and the name."""
    with pytest.raises(SettingsError, match="cap_add='NOPE' is not valid"):
        capabilities.resolve(["NOPE"])


def test_supported():
    """The kernel supports at least docker's default set."""
    assert capabilities.supported() <= capabilities.ALL | capabilities.supported()
    assert capabilities.supported() & DOCKER == DOCKER

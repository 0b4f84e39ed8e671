"""The fixtures of this directory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from boxes import box
from podman_peer import Podman

from pytest_sandbox.container import detached, shared_network

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["box"]


@pytest.fixture(scope="module")
def podman() -> Iterator[Podman]:
    """Run podman with a store of the module's own."""
    peer = Podman()
    yield peer
    peer.close()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Use a store of the test's own, and end what a failed test leaves running; return the
    directory.
    """
    from command_line import sandbox

    monkeypatch.setenv("PYTEST_SANDBOX_HOME", str(tmp_path / "home"))
    yield tmp_path / "home"
    for one in detached.list_detached():
        sandbox("rm", "-f", one.id)
    for network in shared_network.list_networks():
        sandbox("network", "rm", network.name)

"""``--sandbox-pcap``: save what containers have sent on networks during a test, as pcap files."""

from __future__ import annotations

import hashlib
import os
import re
import time
from typing import TYPE_CHECKING

import pytest

from pytest_sandbox.errors import SandboxError
from pytest_sandbox.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["add_options", "register"]

_DIRECTORY = "sandbox-pcap"
_TITLE = "sandbox pcap"
_OTHER = re.compile(r"[^A-Za-z0-9_.=,-]+")
_LONGEST_NAME = 150
_EMPTY = 24  # bytes of a file without packets


def add_options(group: pytest.OptionGroup) -> None:
    """Add the option."""
    group.addoption(
        "--sandbox-pcap",
        choices=("failed", "all", "none"),
        default="none",
        help=f"save the last megabyte of traffic of each network, for failed or all tests, as "
        f"{_DIRECTORY}/TEST.NETWORK.pcap in the rootdir (default: none)",
    )


def register(config: pytest.Config) -> None:
    """Have networks capture their traffic, if the option asks for it."""
    wanted = config.getoption("sandbox_pcap")
    if wanted != "none":
        from pytest_sandbox.container import network_capture

        network_capture.enable()
        plugin = _Pcap(config.rootpath / _DIRECTORY, for_all=wanted == "all")
        config.pluginmanager.register(plugin, "sandbox-pcap")


class _Pcap:
    """The hooks of a session with the option."""

    def __init__(self, directory: Path, *, for_all: bool) -> None:
        self._directory = directory
        self._for_all = for_all
        self._pid = os.getpid()
        self._began = 0.0

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logstart(self) -> None:
        self._began = time.time()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if os.getpid() != self._pid:  # a fork inside, whose parent has the networks
            return
        if report.when == "setup":  # with --sandbox-jobs, a test may start before its turn
            self._began = min(self._began, getattr(report, "start", self._began))
        if report.failed or (self._for_all and report.when != "setup"):
            lines = [*self._save(report.nodeid)]
            if lines:
                report.sections.append((_TITLE, "\n".join(lines)))

    def _save(self, nodeid: str) -> Iterator[str]:
        """Save the traffic since the start of the test; yield the paths, or why there is none."""
        try:
            used: set[str] = set()
            for name, data in self._captured():
                number = next(
                    one for one in ("", *map("-{}".format, range(2, 100))) if name + one not in used
                )
                used.add(name + number)
                path = self._directory / f"{_file_name(nodeid)}.{name}{number}.pcap"
                self._directory.mkdir(exist_ok=True)
                path.write_bytes(data)
                yield printable(str(path))
        except (SandboxError, OSError) as error:
            yield f"the traffic was not saved: {printable(str(error))}"

    def _captured(self) -> Iterator[tuple[str, bytes]]:
        from pytest_sandbox.client import session
        from pytest_sandbox.container.network import Network
        from pytest_sandbox.container.network_capture import closed

        launcher = session.running()
        found = [(one.name, one.data) for one in closed if one.when >= self._began]
        networks = list(launcher.networks) if launcher is not None else []
        found += [
            (network.name, network.captured(self._began) or b"")
            for network in networks
            if isinstance(network, Network)
        ]
        for name, data in sorted(found):
            if len(data) > _EMPTY:
                yield name, data


def _file_name(nodeid: str) -> str:
    """Return a name for a test's file: letters, digits and some marks, of limited length."""
    name = _OTHER.sub("-", nodeid).strip("-.")
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[:_LONGEST_NAME]}-{hashlib.sha256(nodeid.encode()).hexdigest()[:8]}"

"""Coverage of what ran inside: measured in the fork and in its Python subprocesses, brought out before the layer that holds it is discarded."""

from __future__ import annotations

import base64
import glob
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_sandbox.plugin.wire import Receiver, Wire

__all__ = ["Measured", "before_fork", "merge"]


def _current() -> Any:
    module = sys.modules.get("coverage")
    return module.Coverage.current() if module is not None else None


def before_fork() -> None:
    """Put what was measured until now into the parent's data, so that the fork begins with nothing."""
    measuring = _current()
    if measuring is not None:
        measuring.get_data()


class Measured:
    """The fork's side: knows what there was before."""

    def __init__(self) -> None:
        self._measuring = _current()
        self._there_before = self._files()

    def begin(self) -> None:
        """Have Python subprocesses of the fork measured too, as ``patch = subprocess`` of coverage's settings does."""
        serialise = getattr(getattr(self._measuring, "config", None), "serialize", None)
        if serialise is not None and "COVERAGE_PROCESS_START" not in os.environ:
            os.environ.setdefault("COVERAGE_PROCESS_CONFIG", serialise())

    def _files(self) -> set[str]:
        if self._measuring is None:
            return set()
        name = os.path.abspath(self._measuring.config.data_file)
        return set(glob.glob(f"{glob.escape(name)}.*"))

    def send(self, wire: Wire) -> None:
        """Send what was measured in this fork and what its subprocesses have saved, if anything measures."""
        if self._measuring is None:
            return
        self._measuring.stop()
        own = self._measuring.get_data()
        wire.send("coverage", base64.b64encode(own.dumps()).decode())
        for path in sorted(self._files() - self._there_before - {os.path.abspath(own.data_filename())}):
            _send_file(wire, path)


def _send_file(wire: Wire, path: str) -> None:
    from coverage import CoverageData
    from coverage.exceptions import CoverageException

    with suppress(CoverageException, OSError):  # one that a killed subprocess did not finish
        data = CoverageData(path)
        data.read()
        wire.send("coverage", base64.b64encode(data.dumps()).decode())


def merge(receiver: Receiver) -> None:
    """Add what a fork sent to this process's data."""
    measuring = _current()
    if measuring is None:
        return
    from coverage import CoverageData

    for text in receiver.of("coverage"):
        data = CoverageData(no_disk=True)
        data.loads(base64.b64decode(text))
        measuring.get_data().update(data)

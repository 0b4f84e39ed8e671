"""Coverage of what runs in a container: measured by the test process and its Python subprocesses,
sent as line numbers before the writable layer is discarded.

The parent adds the line numbers to its own data by coverage's public methods. It never opens a data
file that a container has written: that is an SQLite database, and reading one executes what its
schema says.
"""

from __future__ import annotations

import glob
import os
import re
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pytest_sandbox.plugin import compat
from pytest_sandbox.plugin.packed_numbers import pack

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_sandbox.plugin.report_channel import Receiver, ReportChannel

__all__ = ["CoverageSender", "before_fork", "merge"]


def _current() -> Any:
    """Return the :class:`coverage.Coverage` that measures this process, or None."""
    module = sys.modules.get("coverage")
    return module.Coverage.current() if module is not None else None


def before_fork() -> None:
    """Move what was measured so far into the parent's data, so that the test process starts with
    nothing.
    """
    coverage = _current()
    if coverage is not None:
        coverage.get_data()


class CoverageSender:
    """The side of the test process. Created before the fork, it knows the earlier data files."""

    def __init__(self) -> None:
        self._coverage = _current()
        self._files_before = self._data_files()
        # By file and context: the numbers that were sent after an earlier test in this process.
        self._sent: dict[tuple[str, str], set[object]] = {}

    def begin(self) -> None:
        """Measure Python subprocesses too, as ``patch = subprocess`` of coverage's configuration
        does.
        """
        serialize = getattr(getattr(self._coverage, "config", None), "serialize", None)
        if serialize is not None and "COVERAGE_PROCESS_START" not in os.environ:
            # TypeError: pytest-testmon has set an option that coverage cannot serialise.
            with suppress(TypeError):
                os.environ.setdefault("COVERAGE_PROCESS_CONFIG", serialize())

    def _data_files(self) -> set[str]:
        if self._coverage is None:
            return set()
        name = os.path.abspath(self._coverage.config.data_file)
        return set(glob.glob(f"{glob.escape(name)}.*"))

    def send(self, channel: ReportChannel) -> None:
        """Send what this process has measured and its subprocesses have saved, and measure on."""
        if self._coverage is None:
            return
        own = self._coverage.get_data()
        self._send(channel, own)
        own_file = os.path.abspath(own.data_filename())
        for path in sorted(self._data_files() - self._files_before - {own_file}):
            self._send_file(channel, path)

    def _send_file(self, channel: ReportChannel, path: str) -> None:
        from coverage import CoverageData
        from coverage.exceptions import CoverageException

        with suppress(CoverageException, OSError):  # incomplete: its process was killed
            data = CoverageData(path)
            data.read()
            self._send(channel, data)

    def _send(self, channel: ReportChannel, data: Any) -> None:
        """Send what a file of measurements has, and was not sent before."""
        has_arcs = data.has_arcs()
        for context in sorted(data.measured_contexts()) or [""]:
            data.set_query_contexts([f"^{re.escape(context)}$"])
            for file in sorted(data.measured_files()):
                found = set((data.arcs(file) if has_arcs else data.lines(file)) or ())
                before = self._sent.get((file, context))
                new = found - (before or set())
                if new or (not context and before is None):  # a file of which no line ran: once
                    self._sent[file, context] = found | (before or set())
                    sent = {
                        "file": file,
                        "context": context,
                        "tracer": data.file_tracer(file) or "",
                        "kind": "arcs" if has_arcs else "lines",
                        "numbers": pack("i", _flat(new) if has_arcs else list(new)),
                    }
                    channel.send("coverage", sent)
        data.set_query_contexts(None)


def _flat(arcs: Iterable[tuple[int, int]]) -> list[int]:
    return [line for arc in arcs for line in arc]


def merge(receiver: Receiver) -> None:
    """Add received line numbers to the parent's data, for files that the session measures."""
    coverage = _current()
    if coverage is None:
        return
    received = [one for one in receiver.of_kind("coverage") if _is_measured(coverage, one["file"])]
    if not received:
        return
    data = coverage.get_data()
    for one in received:
        data.set_context(one["context"])
        _add(data, one)
    data.set_context(None)


def _is_measured(coverage: Any, file: str) -> bool:
    """Tell whether a path is that of a file which coverage's configuration includes."""
    if not os.path.isabs(file) or "\0" in file:
        return False
    if os.path.exists(file) and not os.path.isfile(file):
        return False
    return compat.is_measured(coverage, file, _module_name(file))


def _module_name(file: str) -> str:
    """Return the dotted name of a file's module, derived from the packages that contain it."""
    directory, name = os.path.split(file)
    parts = [os.path.splitext(name)[0]]
    while os.path.exists(os.path.join(directory, "__init__.py")):
        directory, name = os.path.split(directory)
        parts.insert(0, name)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _add(data: Any, received: dict[str, Any]) -> None:
    from coverage.exceptions import CoverageException

    file, numbers = received["file"], received["numbers"]
    with suppress(CoverageException):  # lines, but the session measures arcs
        if received["kind"] == "arcs":
            data.add_arcs({file: list(zip(numbers[::2], numbers[1::2], strict=True))})
        else:
            data.add_lines({file: numbers})
        if received["tracer"]:
            data.add_file_tracers({file: received["tracer"]})

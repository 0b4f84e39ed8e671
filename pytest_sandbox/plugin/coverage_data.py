"""Coverage of what ran inside: measured in the fork and in its Python subprocesses, sent as plain
data before the layer is discarded.

The parent adds line numbers to its own data by coverage's public methods. It never reads a data
file of a container: that is a database, whose statements would be executed.
"""

from __future__ import annotations

import base64
import glob
import os
import re
import sys
from array import array
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pytest_sandbox.plugin import compat

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pytest_sandbox.plugin.report_channel import Receiver, Wire

__all__ = ["Measured", "before_fork", "merge", "unpacked"]


def _current() -> Any:
    module = sys.modules.get("coverage")
    return module.Coverage.current() if module is not None else None


def before_fork() -> None:
    """Put what was measured until now into the parent's data, so that the fork begins with
    nothing.
    """
    measuring = _current()
    if measuring is not None:
        measuring.get_data()


class Measured:
    """The fork's side: knows what there was before."""

    def __init__(self) -> None:
        self._measuring = _current()
        self._there_before = self._files()

    def begin(self) -> None:
        """Have Python subprocesses of the fork measured too, as ``patch = subprocess`` of
        coverage's settings does.
        """
        serialise = getattr(getattr(self._measuring, "config", None), "serialize", None)
        if serialise is not None and "COVERAGE_PROCESS_START" not in os.environ:
            os.environ.setdefault("COVERAGE_PROCESS_CONFIG", serialise())

    def _files(self) -> set[str]:
        if self._measuring is None:
            return set()
        name = os.path.abspath(self._measuring.config.data_file)
        return set(glob.glob(f"{glob.escape(name)}.*"))

    def send(self, wire: Wire) -> None:
        """Send what was measured in this fork and what its subprocesses have saved, if anything
        measures.
        """
        if self._measuring is None:
            return
        self._measuring.stop()
        own = self._measuring.get_data()
        _send(wire, own)
        for path in sorted(
            self._files() - self._there_before - {os.path.abspath(own.data_filename())}
        ):
            _send_file(wire, path)


def _send_file(wire: Wire, path: str) -> None:
    from coverage import CoverageData
    from coverage.exceptions import CoverageException

    with suppress(CoverageException, OSError):  # one that a killed subprocess did not finish
        data = CoverageData(path)
        data.read()
        _send(wire, data)


def _send(wire: Wire, data: Any) -> None:
    is_arcs = data.has_arcs()
    for context in sorted(data.measured_contexts()) or [""]:
        data.set_query_contexts([f"^{re.escape(context)}$"])
        for file in sorted(data.measured_files()):
            numbers = list(_flat(data.arcs(file) or ()) if is_arcs else data.lines(file) or ())
            sent = {
                "file": file,
                "context": context,
                "tracer": data.file_tracer(file) or "",
                "kind": "arcs" if is_arcs else "lines",
                "numbers": base64.b64encode(array("i", numbers)).decode(),
            }
            if numbers or not context:  # a file without a line is measured too
                wire.send("coverage", sent)
    data.set_query_contexts(None)


def _flat(arcs: Iterable[tuple[int, int]]) -> Iterator[int]:
    return (line for arc in arcs for line in arc)


def unpacked(text: str) -> list[int]:
    """Return the numbers that were sent. Raises :class:`ValueError` for what is none."""
    return array("i", base64.b64decode(text, validate=True)).tolist()


def merge(receiver: Receiver) -> None:
    """Add what a fork sent to this process's data, for the files that this session measures."""
    measuring = _current()
    if measuring is None:
        return
    received = [one for one in receiver.of("coverage") if _is_measured(measuring, one["file"])]
    if not received:
        return
    data = measuring.get_data()
    for one in received:
        data.set_context(one["context"])
        _add(data, one)
    data.set_context(None)


def _is_measured(measuring: Any, file: str) -> bool:
    """Tell whether coverage's settings have the file measured, and it is one."""
    if (
        not os.path.isabs(file)
        or "\0" in file
        or (os.path.exists(file) and not os.path.isfile(file))
    ):
        return False
    return compat.is_measured(measuring, file, _module(file))


def _module(file: str) -> str:
    """Return the name of a file's module, by the packages that it lies in."""
    directory, name = os.path.split(file)
    parts = [os.path.splitext(name)[0]]
    while os.path.exists(os.path.join(directory, "__init__.py")):
        directory, name = os.path.split(directory)
        parts.insert(0, name)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _add(data: Any, one: dict[str, Any]) -> None:
    from coverage.exceptions import CoverageException

    file, numbers = one["file"], one["numbers"]
    with suppress(CoverageException):  # lines where there are arcs
        if one["kind"] == "arcs":
            data.add_arcs({file: list(zip(numbers[::2], numbers[1::2], strict=True))})
        else:
            data.add_lines({file: numbers})
        if one["tracer"]:
            data.add_file_tracers({file: one["tracer"]})

"""``--sandbox-slow``: a test that runs for long is named while it runs, with the line it is at.

jobs.py calls this while it waits for test processes. The lines go to the standard error of pytest
itself, also in a worker of xdist, so that they are in the log of a CI job that has to be killed.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from pytest_sandbox.plugin import compat, scopes
from pytest_sandbox.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_sandbox.plugin.report_channel import Receiver

__all__ = ["SlowTests", "add_options", "check"]

_DEFAULT = "60"
#: A frame as faulthandler writes it.
_FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.*)$', re.MULTILINE)
_CURRENT = "Current thread"


def add_options(parser: pytest.Parser, group: pytest.OptionGroup) -> None:
    """Add the option and the ini setting."""
    group.addoption(
        "--sandbox-slow",
        metavar="SECONDS",
        help="name a test that has run inside for this long, and again at each doubling; 0: never "
        f"(default: {_DEFAULT})",
    )
    parser.addini("sandbox_slow", "as --sandbox-slow", default=_DEFAULT)


def check(config: pytest.Config) -> float:
    """Return the seconds. Raises :class:`pytest.UsageError` for anything else."""
    option = config.getoption("sandbox_slow")
    source = "sandbox_slow" if option is None else "--sandbox-slow"
    text = str(compat.ini_value(config, "sandbox_slow") if option is None else option)
    with suppress(ValueError):
        if 0 <= (seconds := float(text)) < float("inf"):
            return seconds
    raise pytest.UsageError(f"{source}={text!r} is not a number of seconds, such as {_DEFAULT}")


class SlowTests:
    """Names the tests that have run for ``seconds``, twice that, and so on; 0: none."""

    def __init__(self, config: pytest.Config) -> None:
        self._seconds = check(config)
        self._output = compat.host_outputs(config)[1]
        self._has_named_threads = False

    def time_left(self, receivers: Iterable[Receiver]) -> float | None:
        """Return the seconds until the next test has to be named; None for never."""
        if not self._seconds:
            return None
        left = (
            self._next(receiver) - receiver.age()
            for receiver in receivers
            if not receiver.is_debugging
        )
        soonest = min(left, default=None)
        return None if soonest is None else max(0.0, soonest)

    def is_due(self, receiver: Receiver) -> bool:
        """Tell whether it is time to name a test."""
        is_waiting_for_input = receiver.is_debugging
        return (
            bool(self._seconds)
            and not is_waiting_for_input
            and receiver.age() >= self._next(receiver)
        )

    def name(self, item: pytest.Item, receiver: Receiver) -> None:
        """Name a test; the first time, name the threads that it may wait for in vain."""
        receiver.named_after = self._next(receiver)
        lines = [f"{item.nodeid} has run for {receiver.named_after:g} s{_place(receiver)}"]
        if not self._has_named_threads and not scopes.is_fresh(item):
            self._has_named_threads = True
            # Not at the top: each session imports this file, also without tests inside.
            from pytest_sandbox.plugin import missing_threads

            lines += missing_threads.describe()
        text = "\n" + "".join(f"sandbox: {line}\n" for line in lines)
        with suppress(OSError):
            os.write(self._output, text.encode(errors="backslashreplace"))

    def _next(self, receiver: Receiver) -> float:
        return 2 * receiver.named_after or self._seconds


def _place(receiver: Receiver) -> str:
    """Return the line that the main thread of a test process is at."""
    stack = receiver.take_stack().decode(errors="replace")
    found = _FRAME.search(stack, max(0, stack.find(_CURRENT)))
    if found is None:
        return ""
    path, line, function = found.groups()
    return f", at {printable(path)}:{line} in {printable(function)}"

"""The status line of a session with several jobs on a terminal: the tests that run at the moment.

It is the line below the one that pytest writes, and is removed before pytest goes on.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from pytest_sandbox.plugin import compat

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

__all__ = ["StatusLine"]

#: Seconds of waiting after which it appears: a line that appears for each short test would flicker.
_DELAY = 0.5
#: Go to the line below, which scrolls the screen at its end, and clear it; back up to a column.
_BELOW, _BACK = "\n\r\x1b[K", "\x1b[A\r"


class StatusLine:
    """The line below the progress; without a terminal, and with one job, it never appears."""

    def __init__(self, config: pytest.Config, jobs: int) -> None:
        self._config = config
        self._fd = compat.host_outputs(config)[0]
        self._is_on = (
            jobs > 1
            and config.get_verbosity() >= 0
            and compat.is_at_terminal(config)
            and os.environ.get("TERM", "dumb") != "dumb"
        )
        self._text = ""
        #: When it appears; None if nothing is waited for.
        self._due: float | None = None

    def time_left(self) -> float | None:
        """Return the seconds until it has to appear; None if it is there, or never appears."""
        if not self._is_on or self._text:
            return None
        if self._due is None:
            self._due = time.monotonic() + _DELAY
        return max(0.0, self._due - time.monotonic())

    def show(self, nodeids: Sequence[str]) -> None:
        """Name these tests, once it is time to."""
        if not self._is_on or (not self._text and self.time_left()):
            return
        text = f"running {len(nodeids)}: {', '.join(nodeids)}"
        # ASCII alone, because the width of other characters depends on the terminal.
        text = text.encode("ascii", "backslashreplace").decode()[: self._columns() - 1]
        if text != self._text:
            self._text = text
            self._write_below(text)

    def erase(self) -> None:
        """Remove the line, before others write."""
        if self._text:
            self._write_below("")
        self._text, self._due = "", None

    def _columns(self) -> int:
        with suppress(OSError):
            return os.get_terminal_size(self._fd).columns
        return 80

    def _write_below(self, text: str) -> None:
        column = compat.terminal_column(self._config)
        right = f"\x1b[{column}C" if column else ""
        with suppress(OSError):
            os.write(self._fd, f"{_BELOW}{text}{_BACK}{right}".encode())

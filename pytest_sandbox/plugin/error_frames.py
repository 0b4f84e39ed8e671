"""The frames in which an exception was raised.

What its message leaves out, such as the address of a refused connection, is often in their local
variables. Those of this plugin around the hooks of a test are no part of the test.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

__all__ = ["local_variables", "without_own_frames"]

#: The modules that run the phases of a test.
_OWN = {
    f"pytest_sandbox.plugin.{name}"
    for name in ("compat_fixtures", "protocol", "sandboxed_test", "test_process")
}

_MAX_FRAMES, _MAX_LOCALS = 50, 200


def local_variables(error: BaseException) -> Iterator[tuple[str, object]]:
    """Yield the names and values of the local variables of a traceback, the innermost first."""
    frames: list[FrameType] = []
    traceback = error.__traceback__
    while traceback is not None and len(frames) < _MAX_FRAMES:
        frames.append(traceback.tb_frame)
        traceback = traceback.tb_next
    for frame in reversed(frames):
        yield from list(frame.f_locals.items())[:_MAX_LOCALS]


def without_own_frames(
    excinfo: pytest.ExceptionInfo[BaseException],
) -> pytest.ExceptionInfo[BaseException]:
    """Return an exception without the frames of this plugin between those of pytest, as it is in
    plain pytest. That cuts a traceback differently if all frames are its own.

    An exception that this plugin has raised keeps them.
    """
    entries = list(_entries(excinfo.value.__traceback__))
    kept = [one for one in entries if one.tb_frame.f_globals.get("__name__") not in _OWN]
    if len(kept) == len(entries) or not kept or kept[-1] is not entries[-1]:
        return excinfo
    traceback: TracebackType | None = None
    for one in reversed(kept):
        traceback = TracebackType(traceback, one.tb_frame, one.tb_lasti, one.tb_lineno)
    return pytest.ExceptionInfo.from_exception(excinfo.value.with_traceback(traceback))


def _entries(traceback: TracebackType | None) -> Iterator[TracebackType]:
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next

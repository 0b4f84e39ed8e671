"""The local variables of the frames in which an exception was raised: what its message leaves out,
such as the address of a refused connection, is often there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

__all__ = ["local_variables"]

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

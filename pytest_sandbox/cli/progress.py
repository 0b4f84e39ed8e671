"""Progress bars of pull and load, on a terminal if rich is installed."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import Progress

    Report = Callable[[str, str, int, int], None]

__all__ = ["reporting"]

_SHORT = 12


@contextmanager
def reporting(stream: TextIO | None, *, quiet: bool = False) -> Iterator[Report | None]:
    """Yield a function that shows the progress of each layer on ``stream``; None with ``quiet``, or
    if bars cannot be shown.
    """
    bars = None if quiet or stream is None or not stream.isatty() else _bars(stream)
    if bars is None:
        yield None
        return
    with bars:
        yield _Layers(bars)


def _bars(stream: TextIO) -> Progress | None:
    try:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TransferSpeedColumn,
        )
    except ImportError:
        return None
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    return Progress(*columns, console=Console(file=stream), transient=True)


class _Layers:
    """One bar for each layer, which is added at its first progress."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, object] = {}

    def __call__(self, key: str, what: str, done: int, total: int) -> None:
        task = self._tasks.get(key)
        if task is None:
            name = key.removeprefix("sha256:")[:_SHORT]
            task = self._tasks[key] = self._bars.add_task(f"{name} {what}", total=total)
        # the TaskID of rich
        self._bars.update(task, completed=done)  # type: ignore[arg-type]

"""Small processes of the launcher that wait for messages on a socket: the layer holder, and the one
that frees layers.

A helper is forked by a launcher that has one thread, and ends with it, whatever happens: the kernel
kills it when the launcher dies (PR_SET_PDEATHSIG), and its socket ends.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, NoReturn

from pytest_sandbox.linux import process
from pytest_sandbox.runtime.protocol import Channel

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["start"]


def start(serve: Callable[[Channel], None]) -> Channel:
    """Fork a helper that calls ``serve`` with its end of a socket and ends when that returns or
    fails; return the other end.
    """
    launcher = os.getpid()
    ours, theirs = Channel.pair()
    try:
        if not os.fork():
            _run(launcher, theirs, serve)
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    return ours


def _run(launcher: int, channel: Channel, serve: Callable[[Channel], None]) -> NoReturn:
    try:
        process.die_with_parent()
        if os.getppid() == launcher:  # it lives still, so that signal will come
            os.setsid()
            process.close_others({channel.fileno()})
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            serve(channel)
    finally:
        os._exit(0)

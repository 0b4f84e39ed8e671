"""Helper processes of the launcher that serve a socket: the layer holder and the layer remover.

The launcher forks a helper while it has one thread. A helper never outlives the launcher: the
kernel kills it (PR_SET_PDEATHSIG), and its socket reaches the end of file.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, NoReturn

from pytest_sandbox.linux import process
from pytest_sandbox.runtime.protocol import Channel

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["fork", "start"]


def start(serve: Callable[[Channel], None]) -> Channel:
    """Fork a helper that calls ``serve`` with its end of a socket and exits when that returns or
    fails; return the other end.
    """
    return fork(serve)[1]


def fork(serve: Callable[[Channel], None]) -> tuple[int, Channel]:
    """Do the same as :func:`start`; return the PID of the helper, and the other end."""
    launcher = os.getpid()
    ours, theirs = Channel.pair()
    try:
        if not (pid := os.fork()):
            _run(launcher, theirs, serve)
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    return pid, ours


def _run(launcher: int, channel: Channel, serve: Callable[[Channel], None]) -> NoReturn:
    try:
        process.die_with_parent()
        # If the launcher died before prctl(2), that signal never comes.
        if os.getppid() == launcher:
            os.setsid()
            process.close_others({channel.fileno()})
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            serve(channel)
    finally:
        os._exit(0)

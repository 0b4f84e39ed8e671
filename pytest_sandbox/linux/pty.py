"""Open pseudoterminals of a container's /dev/pts (pty(7), TIOCGPTPEER(2const))."""

from __future__ import annotations

import fcntl
import os
import struct

__all__ = ["TIOCSCTTY", "open_pair"]

TIOCSCTTY = 0x540E
_TIOCSPTLCK = 0x40045431
_TIOCGPTPEER = 0x5441


def open_pair(master: int) -> tuple[int, int]:
    """Unlock an open ``ptmx``; return it and a descriptor of its other end.

    TIOCGPTPEER opens the other end without a path, which would be resolved on the host.
    """
    fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
    return master, fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)

"""Pseudo-terminals of another root's /dev/pts (pty(7))."""

from __future__ import annotations

import fcntl
import os
import struct

__all__ = ["TIOCSCTTY", "open_pair"]

TIOCSCTTY = 0x540E
_TIOCSPTLCK = 0x40045431
_TIOCGPTPEER = 0x5441


def open_pair(master: int) -> tuple[int, int]:
    """Unlock what was opened as ``ptmx``, and return it with its other end, which is found without
    any name (TIOCGPTPEER).
    """
    fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
    return master, fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)

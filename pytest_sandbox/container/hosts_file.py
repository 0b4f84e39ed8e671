"""The hosts file (hosts(5)) of a network: one file that all its containers have at /etc/hosts.

It is changed in place while containers read it, since a bind mount keeps showing the old file after
a rename over its source. Each container has a line of a fixed length, which one pwrite(2) changes,
so that a reader always sees whole lines.
"""

from __future__ import annotations

import os
from typing import Final

from pytest_sandbox.runtime.etc_files import LOCALHOST

__all__ = ["Hosts"]

#: Bytes of a line: an address, a host name of at most 63 characters, an id.
_WIDTH: Final = 128


class Hosts:
    """A new hosts file at ``path``."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._places: dict[str, int] = {}
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.fchmod(fd, 0o644)  # every user inside reads it, whatever the umask here is
            os.write(fd, LOCALHOST)
        finally:
            os.close(fd)

    def add(self, address: str, *names: str) -> None:
        """Add the line of an address, in place of the first removed one."""
        used = set(self._places.values())
        place = self._places.get(
            address, next(number for number in range(len(used) + 1) if number not in used)
        )
        self._write(place, f"{address}\t{' '.join(names)}")
        self._places[address] = place

    def remove(self, address: str) -> None:
        """Remove the line of an address, if it has one."""
        place = self._places.pop(address, None)
        if place is not None:
            self._write(place, "#")

    def _write(self, place: int, line: str) -> None:
        fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(fd, line.ljust(_WIDTH - 1).encode() + b"\n", len(LOCALHOST) + place * _WIDTH)
        finally:
            os.close(fd)

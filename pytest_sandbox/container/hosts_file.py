"""The file in which the containers of a network find each other's names (hosts(5)): one for all of
them, changed in place as they come and go.

Each container has a line of a fixed length, which one pwrite(2) changes: whoever reads meanwhile
finds the others' whole. It is seen at /etc/hosts by a bind mount, which shows one file for good and
not one that is renamed into its place.
"""

from __future__ import annotations

import os
from typing import Final

from pytest_sandbox.runtime.etc_files import LOCALHOST

__all__ = ["Hosts"]

_WIDTH: Final = 128  # an address, a host name of at most 63 characters, an id


class Hosts:
    """The file at ``path``, which is made."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._places: dict[str, int] = {}
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.fchmod(fd, 0o644)  # every user inside reads it, whatever this one's umask
            os.write(fd, LOCALHOST)
        finally:
            os.close(fd)

    def add(self, address: str, *names: str) -> None:
        """Add the line of an address, in the first free place."""
        taken = set(self._places.values())
        place = self._places.get(
            address, next(number for number in range(len(taken) + 1) if number not in taken)
        )
        self._write(place, f"{address}\t{' '.join(names)}")
        self._places[address] = place

    def remove(self, address: str) -> None:
        """Take its line away, where it has one."""
        place = self._places.pop(address, None)
        if place is not None:
            self._write(place, "#")

    def _write(self, place: int, line: str) -> None:
        fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(fd, line.ljust(_WIDTH - 1).encode() + b"\n", len(LOCALHOST) + place * _WIDTH)
        finally:
            os.close(fd)

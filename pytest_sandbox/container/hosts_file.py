"""The hosts file (hosts(5)) of a network: one file that all its containers have at /etc/hosts.

It is changed in place while containers read it, since a bind mount keeps showing the old file after
a rename over its source. Each container has lines of a fixed length, each of which one pwrite(2)
changes, so that a reader always sees whole lines.
"""

from __future__ import annotations

import itertools
import os
from typing import Final

from pytest_sandbox.runtime.etc_files import LOCALHOST

__all__ = ["Hosts"]

#: Bytes of a line: an address, a name of at most 63 characters, an id.
_WIDTH: Final = 128


class Hosts:
    """A new hosts file at ``path``."""

    def __init__(self, path: str) -> None:
        self.path = path
        #: The numbers of the lines of each address.
        self._places: dict[str, list[int]] = {}
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.fchmod(fd, 0o644)  # every user inside reads it, whatever the umask here is
            os.write(fd, LOCALHOST)
        finally:
            os.close(fd)

    def add(self, address: str, *names: str) -> None:
        """Add the lines of an address, in place of removed ones; the first has the name that a
        reverse lookup finds.
        """
        self.remove(address)
        used = {place for places in self._places.values() for place in places}
        free = (number for number in itertools.count() if number not in used)
        self._places[address] = [
            self._write(next(free), f"{address}\t{line}") for line in _lines(address, names)
        ]

    def remove(self, address: str) -> None:
        """Remove the lines of an address, if it has some."""
        for place in self._places.pop(address, ()):
            self._write(place, "#")

    def _write(self, place: int, line: str) -> int:
        fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(fd, line.ljust(_WIDTH - 1).encode() + b"\n", len(LOCALHOST) + place * _WIDTH)
        finally:
            os.close(fd)
        return place


def _lines(address: str, names: tuple[str, ...]) -> list[str]:
    """Distribute names over as many lines as they need."""
    room = _WIDTH - len(address) - 2
    lines = [names[0]]
    for name in names[1:]:
        if len(lines[-1]) + 1 + len(name) <= room:
            lines[-1] += f" {name}"
        else:
            lines.append(name)
    return lines

"""List the sockets on which a process listens (proc_pid_net(5), proc_pid_fd(5), unix(7))."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Listener", "all_listening", "listening"]

_TCP_LISTEN = "0A"  # TCP_LISTEN of net/tcp_states.h
_SO_ACCEPTCON = 0x10000


class Listener(NamedTuple):
    """A listening socket: ``address`` and ``port`` of TCP, or ``path`` of a Unix domain socket."""

    address: str = ""
    port: int = 0
    path: str = ""


def listening(pid: int) -> list[Listener]:
    """Return the sockets on which ``pid`` listens, in the caller's network namespace."""
    inodes = _inodes(pid)
    return [listener for inode, listener in _all_listeners() if inode in inodes]


def all_listening() -> list[Listener]:
    """Return the sockets on which any process listens, in the caller's network namespace."""
    return [listener for _inode, listener in _all_listeners()]


def _inodes(pid: int) -> set[str]:
    found = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with suppress(OSError):
            target = os.readlink(f"/proc/{pid}/fd/{name}")
            if target.startswith("socket:["):
                found.add(target[8:-1])
    return found


def _all_listeners() -> Iterator[tuple[str, Listener]]:
    for name in ("tcp", "tcp6"):
        for words in _rows(name):
            if words[3] == _TCP_LISTEN:
                address, _, port = words[1].partition(":")
                yield words[9], Listener(_address(address), int(port, 16))
    for words in _rows("unix"):
        if int(words[3], 16) & _SO_ACCEPTCON and len(words) > 7 and words[7].startswith("/"):
            yield words[6], Listener(path=words[7].rstrip("\n"))


def _rows(name: str) -> Iterator[list[str]]:
    with (
        suppress(FileNotFoundError),
        open(f"/proc/self/net/{name}", encoding="utf-8", errors="surrogateescape") as file,
    ):
        next(file)
        for line in file:
            yield line.split(maxsplit=7 if name == "unix" else -1)


def _address(text: str) -> str:
    """Return an address; the kernel prints it as 32-bit words in native byte order."""
    words = [int(text[start : start + 8], 16) for start in range(0, len(text), 8)]
    data = struct.pack(f"={len(words)}I", *words)
    return socket.inet_ntop(socket.AF_INET if len(words) == 1 else socket.AF_INET6, data)

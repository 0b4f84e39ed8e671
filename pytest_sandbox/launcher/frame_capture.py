"""The capture of a network: a process for each network of a session with ``--sandbox-pcap``.

It reads what containers send from a packet socket that the client has opened, and keeps the last
megabyte. The client sends, and gets ``ready``:

==========  ==================================================================================
``open``    + [the socket]
``frames``  since: the answer has a file in memory, in the format of pcap, with what came since
==========  ==================================================================================

It ends when the client shuts down its end of the socket, or with the launcher.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from pytest_sandbox.launcher.event_loop import EventLoop
from pytest_sandbox.linux.packet_socket import OUTGOING

if TYPE_CHECKING:
    from pytest_sandbox.runtime.protocol import Channel, Message

__all__ = ["serve"]

_LIMIT = 1 << 20
_LONGEST = 1 << 17
_BURST = 256
_PORTS = "port"  # the devices to which containers are connected
# The file header and the record header of pcap (pcap-savefile(5)), with the link type Ethernet.
_FILE = struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, _LONGEST, 1)
_RECORD = struct.Struct("=IIII")


def serve(channel: Channel) -> None:
    """Serve until the client closes its end."""
    _Capture(channel).serve()


class _Capture(EventLoop):
    """The loop of the process."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel)
        self._socket: socket.socket | None = None
        self._records: deque[tuple[float, bytes]] = deque()
        self._size = 0

    def _read(self, _events: int = 0) -> None:
        """Keep the frames that have arrived."""
        assert self._socket is not None
        with suppress(OSError):  # no more frames
            for _ in range(_BURST):
                frame, address = self._socket.recvfrom(_LONGEST)
                if address[0].startswith(_PORTS) and address[2] != OUTGOING:
                    self._keep(frame)

    def _keep(self, frame: bytes) -> None:
        now = time.time()
        header = _RECORD.pack(int(now), int(now % 1 * 1e6), len(frame), len(frame))
        self._records.append((now, header + frame))
        self._size += len(header) + len(frame)
        while self._size > _LIMIT:
            self._size -= len(self._records.popleft()[1])

    def _do_open(self, _message: Message, fds: list[int]) -> None:
        self._socket = socket.socket(fileno=fds[0])
        self.watch(fds[0], select.EPOLLIN, self._read)

    def _do_frames(self, message: Message, _fds: list[int]) -> None:
        self._read()  # what containers have sent before the client asked
        fd = os.memfd_create("pcap")
        self.answer_fds.append(fd)
        with open(fd, "w+b", closefd=False) as file:
            file.write(_FILE)
            file.writelines(record for when, record in self._records if when >= message["since"])

"""The relay of frames: a process for each network with faults.

Between a container with faults and its network, frames go through two packet sockets, which the
client has opened (:meth:`pytest_sandbox.linux.rtnetlink.Bridge.divert`). The process reads frames
from one and writes them to the other, later, twice, or not at all.

The client sends, with descriptors, and gets ``ready``, or ``failed`` (errno, reason):

============  ====================================================================================
``join``      number + [the socket of a container, the socket of the bridge]
``leave``     number
``rules``     rules: these faults from now on, each with the places ``at`` which it applies: the
              number of a container, and the MAC address of the peer, or "" for all its traffic
``reset``     id, number, connections: reset these
``counters``  the answer has ``counters`` by the id of the fault
============  ====================================================================================

It ends when the client shuts down its end of the socket, or with the launcher.
"""

from __future__ import annotations

import heapq
import itertools
import select
import socket
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from pytest_sandbox.launcher.event_loop import EventLoop
from pytest_sandbox.launcher.fault_rule import MAX_FLOWS, Rule
from pytest_sandbox.launcher.tcp_reset import Resets
from pytest_sandbox.linux import packet_socket
from pytest_sandbox.linux.packet_socket import VNET_HEADER

if TYPE_CHECKING:
    from pytest_sandbox.runtime.protocol import Channel, Message

__all__ = ["serve"]

_CHUNK = 1 << 17
#: Frames that are read from one socket before another has its turn.
_BURST = 64
#: Bytes that wait in one direction; what comes then is dropped.
_MAX_WAITING = 16 << 20
#: What a frame that waits counts in addition: its place in memory, and the time to send it. A fault
#: that ends sends all of them before the client gets its answer.
_FRAME_COST = 512
_ARP = b"\x08\x06"


def serve(channel: Channel) -> None:
    """Serve until the client closes its end."""
    _Relay(channel).serve()


class _Direction:
    """From the container to the network (``is_out``), or from the network to the container."""

    def __init__(
        self, number: int, source: socket.socket, target: socket.socket, *, is_out: bool
    ) -> None:
        self.key = (number, is_out)
        self.source, self.target = source, target
        #: Each rule, with the MAC address of the only sender that it is about, or empty.
        self.rules: list[tuple[bytes, Rule]] = []
        self.waiting = 0
        #: When the last frame that keeps its place is sent, by the pair of MAC addresses.
        self.last: dict[bytes, float] = {}

    def send(self, data: bytes) -> None:
        # The container has ended, or the kernel has no memory: a network loses such frames, too.
        with suppress(OSError):
            self.target.send(data)


class _Relay(EventLoop):
    """The loop of the process."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel)
        self._directions: dict[int, _Direction] = {}
        self._rules: dict[int, Rule] = {}
        self._places: list[tuple[int, int, bytes]] = []  # the id of a rule, number, peer
        self._resets = Resets()
        self._queue: list[tuple[float, int, _Direction, bytes]] = []
        self._count = itertools.count()

    def _wait(self) -> list[tuple[int, int]]:
        self._send_due(time.monotonic())
        # Not epoll_wait(2), which waits for whole milliseconds.
        ready = select.select([self._poll.fileno()], (), (), self._timeout())[0]
        return self._poll.poll(0) if ready else []

    def _timeout(self) -> float | None:
        return max(0.0, self._queue[0][0] - time.monotonic()) if self._queue else None

    # -- frames

    def _move(self, direction: _Direction, _events: int = 0) -> None:
        with suppress(OSError):  # no more frames; or the device has gone
            for _ in range(_BURST):
                self._handle(direction, direction.source.recv(_CHUNK))

    def _handle(self, direction: _Direction, data: bytes) -> None:
        if self._resets and self._reset(direction, data):
            return
        flow, now = data[VNET_HEADER : VNET_HEADER + 12], time.monotonic()
        is_arp = data[VNET_HEADER + 12 : VNET_HEADER + 14] == _ARP
        size = len(data) - VNET_HEADER
        copies, delay, in_order, last = 1, 0.0, True, None
        for peer, rule in direction.rules:
            if peer and peer != flow[6:]:
                continue
            decision = rule.decide(flow, direction.key, size, now, is_arp=is_arp)
            if not decision.copies:
                return
            copies *= decision.copies
            delay += decision.delay
            in_order, last = in_order and decision.in_order, rule
        self._forward(direction, data, copies, self._due(direction, flow, now + delay, in_order))
        if last is not None and direction.waiting > _MAX_WAITING:
            last.counters["overflowed"] += 1

    @staticmethod
    def _due(direction: _Direction, flow: bytes, due: float, in_order: bool) -> float:
        """Return when to send a frame: after those before it, if it keeps its place."""
        if not in_order:
            return due
        if len(direction.last) >= MAX_FLOWS:
            direction.last.clear()
        direction.last[flow] = due = max(due, direction.last.get(flow, 0.0))
        return due

    def _forward(self, direction: _Direction, data: bytes, copies: int, due: float) -> None:
        for _ in range(copies):
            if due <= time.monotonic():
                direction.send(data)
            elif direction.waiting <= _MAX_WAITING:
                direction.waiting += len(data) + _FRAME_COST
                heapq.heappush(self._queue, (due, next(self._count), direction, data))

    def _send_due(self, now: float) -> None:
        while self._queue and self._queue[0][0] <= now:
            _due, _number, direction, data = heapq.heappop(self._queue)
            direction.waiting -= len(data) + _FRAME_COST
            direction.send(data)

    def _reset(self, direction: _Direction, data: bytes) -> bool:
        """Send RST to both ends if the frame is of a connection to reset; return whether it is."""
        found = self._resets.answer(data)
        if found is None:
            return False
        fault, is_first, to_sender, to_receiver = found
        self._rules[fault].counters["reset"] += is_first
        with suppress(OSError):
            direction.source.send(to_sender)
        direction.send(to_receiver)
        return True

    # -- the client

    def _do_join(self, message: Message, fds: list[int]) -> None:
        inner, outer = (socket.socket(fileno=fd) for fd in fds)
        number = message["number"]
        for source, target, is_out in ((inner, outer, True), (outer, inner, False)):
            direction = _Direction(number, source, target, is_out=is_out)
            self._directions[source.fileno()] = direction
            self.watch(source.fileno(), select.EPOLLIN, partial(self._move, direction))
        self._apply()

    def _do_leave(self, message: Message, _fds: list[int]) -> None:
        for fd, direction in list(self._directions.items()):
            if direction.key[0] == message["number"]:
                self._move(direction)  # what came before the port was switched
                self._send_due(float("inf"))
                del self._directions[fd]
                self.watch(fd, 0, partial(self._move, direction))
                direction.source.close()

    def _do_rules(self, message: Message, _fds: list[int]) -> None:
        rules = {one["id"]: self._rules.get(one["id"]) or Rule(one) for one in message["rules"]}
        has_ended = not self._rules.keys() <= rules.keys()
        self._rules = rules
        self._places = [
            (one["id"], number, bytes.fromhex(peer))
            for one in message["rules"]
            for number, peer in one["at"]
        ]
        self._resets.forget(set(rules))
        self._apply()
        if has_ended:  # what it has delayed is sent now
            self._send_due(float("inf"))
            for direction in self._directions.values():
                direction.last.clear()
            for rule in rules.values():
                rule.restart()

    def _apply(self) -> None:
        for direction in self._directions.values():
            number, is_out = direction.key
            # A rule about a pair is applied where its frames arrive, so also to broadcasts.
            direction.rules = [
                (peer, self._rules[rule])
                for rule, at, peer in self._places
                if at == number and not (peer and is_out)
            ]

    def _do_reset(self, message: Message, _fds: list[int]) -> None:
        inner = next(
            one.source for one in self._directions.values() if one.key == (message["number"], True)
        )
        hardware = bytes.fromhex(message["hardware"])
        for address, port, peer, peer_port, peer_hardware in message["connections"]:
            key = (socket.inet_aton(peer), peer_port, socket.inet_aton(address), port)
            self._resets.add(key, message["id"])
            challenge = self._resets.challenge(hardware + bytes.fromhex(peer_hardware), key)
            with suppress(OSError):
                inner.send(challenge)

    def _do_counters(self, _message: Message, _fds: list[int]) -> Message:
        for direction in self._directions.values():
            dropped = packet_socket.dropped(direction.source)
            for _peer, rule in direction.rules if dropped else ():
                rule.counters["overflowed"] += dropped
        return {"counters": {str(number): rule.counters for number, rule in self._rules.items()}}

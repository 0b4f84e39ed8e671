"""How each condition of a wait is examined: in steps that never wait.

A probe says what to poll for, and when to look again at what the kernel does not announce (a new
listening socket, a file): the next look comes after a tenth of the time waited so far. So a wait
takes at most a tenth longer than it has to, and a slow server is looked at seldom.
"""

from __future__ import annotations

import errno
import itertools
import os
import select
import socket
import subprocess
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from pytest_sandbox.container import conditions
from pytest_sandbox.container.files import open_inside
from pytest_sandbox.container.kept_log import KeptLog
from pytest_sandbox.container.popen import Popen
from pytest_sandbox.errors import ContainerStopped, UnsupportedError
from pytest_sandbox.linux import network_sockets
from pytest_sandbox.printable import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_sandbox.container.handle import Handle

__all__ = ["Probe", "make_probe"]

#: The part of the time waited so far until the next look, and the least and the most seconds. Two
#: looks take some 30 microseconds (network_sockets.py).
_DELAY_PART, _LEAST_DELAY, _MAX_DELAY = 0.1, 0.001, 0.01
#: The most for commands and requests, which cost the service more than a look.
_MAX_ATTEMPT_DELAY = 0.1
#: Seconds for a server to answer a request; then the request is sent again.
_ANSWER_TIMEOUT = 5.0
_MAX_ANSWER = 1 << 16
_LOOPBACKS = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


class Probe:
    """The state of one condition. ``found`` says what was found last, for an error message."""

    max_delay = _MAX_DELAY

    def __init__(self) -> None:
        self.found = "it was not examined"
        self.has_held = False
        self._begin = time.monotonic()
        self._next = 0.0

    def check(self) -> bool:
        """Return whether the condition has held; examine it if it is time to."""
        if not self.has_held and time.monotonic() >= self._next:
            self.has_held = self._examine()
        return self.has_held

    def _examine(self) -> bool:
        raise NotImplementedError

    def _look_later(self) -> None:
        now = time.monotonic()
        wanted = (now - self._begin) * _DELAY_PART
        self._next = now + min(max(wanted, _LEAST_DELAY), self.max_delay)

    def polled(self) -> list[tuple[int, int]]:
        """Return the descriptors and events of poll(2) that tell of a change."""
        return []

    def next_look(self) -> float | None:
        """Return the time (:func:`time.monotonic`) of the next look; None: only after an event."""
        return None if self.has_held else self._next

    def close(self) -> None:
        """Release what the probe holds."""


class _PortProbe(Probe):
    def __init__(self, handle: Handle, condition: conditions.Port) -> None:
        super().__init__()
        self._port = condition.number
        self.found = f"nothing listens on port {self._port}"
        self._fd = _open_socket(
            handle, socket.AF_NETLINK, socket.SOCK_RAW, network_sockets.NETLINK_SOCK_DIAG
        )

    def _examine(self) -> bool:
        self._look_later()
        try:
            return bool(network_sockets.listening_families(self._fd, self._port))
        except FileNotFoundError as error:
            remedy = "Load the module tcp_diag (modprobe tcp_diag), or wait for log= or http=."
            raise UnsupportedError("waiting for a port", remedy) from error

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class _FileProbe(Probe):
    def __init__(self, handle: Handle, condition: conditions.File) -> None:
        super().__init__()
        self._handle, self._path = handle, condition.path
        self.found = f"{printable(os.fspath(self._path))} does not exist"

    def _examine(self) -> bool:
        self._look_later()
        with suppress(OSError):
            os.close(open_inside(self._handle, self._path, os.O_PATH))
            return True
        return False


class _LogProbe(Probe):
    def __init__(self, logs: Sequence[KeptLog], condition: conditions.Log) -> None:
        super().__init__()
        self._pattern = condition.compiled
        self.found = f"no line of the log has {self._pattern.pattern!r}"
        self._positions = dict.fromkeys(logs, 0)

    def _examine(self) -> bool:
        return any(self._is_in(log) for log in self._positions)

    def _is_in(self, log: KeptLog) -> bool:
        """Search the lines that were not complete at the last look, and those after them."""
        with suppress(BlockingIOError, ValueError, OSError):
            os.eventfd_read(log.changed)
        first, data = log.since(self._positions[log])
        self._positions[log] = first + data.rfind(b"\n") + 1
        return self._pattern.search(data.decode(errors="replace")) is not None

    def polled(self) -> list[tuple[int, int]]:
        return [(log.changed, select.POLLIN) for log in self._positions if log.changed >= 0]

    def next_look(self) -> None:
        return None


class _CommandProbe(Probe):
    max_delay = _MAX_ATTEMPT_DELAY

    def __init__(self, handle: Handle, condition: conditions.Command) -> None:
        super().__init__()
        self._handle, self._condition = handle, condition
        self._running: Popen[bytes] | None = None
        self._log: KeptLog | None = None
        self._deadline = 0.0
        self.found = f"{self._name()} has not ended"  # a later attempt keeps the result of the last

    def _examine(self) -> bool:
        try:
            if self._running is None:
                self._start()
        except subprocess.TimeoutExpired:  # it could not even be started
            self.found = self._too_slow()
            self._look_later()
            return False
        assert self._running is not None
        code = self._running.poll()
        if code is None and time.monotonic() < self._deadline:
            return False
        if code is None:
            self._running.end()
            self.found = self._too_slow()
        elif code:
            self.found = f"{self._name()} ended with exit status {code}{self._last_line()}"
        self._release()
        self._look_later()
        return code == 0

    def _start(self) -> None:
        self._log = KeptLog()
        try:
            output = self._log.writer
            self._running = Popen(
                self._handle,
                self._condition.args,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_timeout=self._condition.timeout,
            )
        except BaseException:
            self._release()
            raise
        self._log.close_writer()
        self._deadline = time.monotonic() + self._condition.timeout

    def _name(self) -> str:
        return f"the command {printable(' '.join(self._condition.args))!r}"

    def _too_slow(self) -> str:
        return f"{self._name()} has not ended within {self._condition.timeout:g} s"

    def _last_line(self) -> str:
        assert self._log is not None
        self._log.await_end()
        lines = self._log.text().strip().splitlines()
        return f": {printable(lines[-1])}" if lines else ""

    def polled(self) -> list[tuple[int, int]]:
        fd = -1 if self._running is None else self._running.fileno()
        return [(fd, select.POLLIN)] if fd >= 0 else []

    def next_look(self) -> float | None:
        return super().next_look() if self._running is None else self._deadline

    def _release(self) -> None:
        running, log = self._running, self._log
        self._running = self._log = None
        if running is not None and running.poll() is None:
            running.end()
        if log is not None:
            log.close()

    def close(self) -> None:
        self._release()


class _QueryProbe(Probe):
    """A conversation on a socket in the container's network, to its loopback, IPv4 and IPv6 in
    turn, once something listens on the port.
    """

    def __init__(self, handle: Handle, condition: conditions.Query) -> None:
        super().__init__()
        self._handle, self._condition = handle, condition
        self._socket: socket.socket | None = None
        self._diag = _open_socket(
            handle, socket.AF_NETLINK, socket.SOCK_RAW, network_sockets.NETLINK_SOCK_DIAG
        )
        self._loopbacks = itertools.cycle(_LOOPBACKS)
        self._deadline = 0.0
        self._to_send = b""
        self._conversation = condition.conversation()
        self.found = f"port {condition.port} has not answered"

    def _examine(self) -> bool:
        try:
            if self._socket is None and not self._is_listened_to():
                self._look_later()
                return False
            if self._socket is None:
                self._connect()
            return self._advance()
        except BlockingIOError:
            if time.monotonic() > self._deadline:
                self._fail(f"no answer within {_ANSWER_TIMEOUT:g} s")
        except ConnectionRefusedError:
            self._fail("")
        except OSError as error:
            self._fail(str(error.strerror))
        except conditions.UnexpectedAnswer as error:
            self._fail(repr(printable(str(error))))
        return False

    def _is_listened_to(self) -> bool:
        """Return whether something listens; at the first time, decide where to connect first."""
        if self._diag < 0:
            return True
        try:
            families = network_sockets.listening_families(self._diag, self._condition.port)
        except FileNotFoundError:  # the kernel has no inet_diag: an attempt finds out
            families = [socket.AF_INET]
        if not families:
            return False
        self._close_diag()
        self.max_delay = _MAX_ATTEMPT_DELAY
        if families == [socket.AF_INET]:
            self._loopbacks = itertools.cycle(_LOOPBACKS[:1])
        elif families == [socket.AF_INET6]:  # which may accept IPv4 too
            next(self._loopbacks)
        return True

    def _close_diag(self) -> None:
        fd, self._diag = self._diag, -1
        if fd >= 0:
            os.close(fd)

    def _connect(self) -> None:
        family, address = next(self._loopbacks)
        fd = _open_socket(self._handle, family, socket.SOCK_STREAM)
        self._socket = socket.socket(fileno=fd)
        self._conversation = self._condition.conversation()
        self._to_send = next(self._conversation)
        self._deadline = time.monotonic() + _ANSWER_TIMEOUT
        code = self._socket.connect_ex((address, self._condition.port))
        if code not in {0, errno.EINPROGRESS}:
            raise OSError(code, os.strerror(code))

    def _advance(self) -> bool:
        """Send what is left to send, and read what has arrived, until the conversation is over."""
        assert self._socket is not None
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
        received = 0
        while True:
            while self._to_send:
                self._to_send = self._to_send[self._socket.send(self._to_send) :]
            part = self._socket.recv(_MAX_ANSWER)
            received += len(part)
            if not part or received > _MAX_ANSWER:
                raise ConnectionResetError(errno.ECONNRESET, "the connection was closed")
            try:
                self._to_send = self._conversation.send(part)
            except StopIteration:
                self._hang_up()
                return True

    def _fail(self, what: str) -> None:
        self._hang_up()
        self._look_later()
        if what:  # else what the other address has answered says more
            self.found = f"{self._condition.name} on port {self._condition.port}: {what}"

    def polled(self) -> list[tuple[int, int]]:
        if self._socket is None:
            return []
        return [(self._socket.fileno(), select.POLLOUT if self._to_send else select.POLLIN)]

    def next_look(self) -> float | None:
        return super().next_look() if self._socket is None else self._deadline

    def _hang_up(self) -> None:
        made, self._socket = self._socket, None
        if made is not None:
            made.close()

    def close(self) -> None:
        self._hang_up()
        self._close_diag()


class _Group(Probe):
    """Several conditions, of which all must have held, or one."""

    def __init__(self, probes: list[Probe], *, every: bool) -> None:
        super().__init__()
        self._probes = probes
        self._every = every

    def check(self) -> bool:
        held = [probe.check() for probe in self._probes]
        self.has_held = all(held) if self._every else any(held)
        missing = [probe.found for probe in self._probes if not probe.has_held]
        self.found = ("; " if self._every else ", and ").join(missing)
        return self.has_held

    def polled(self) -> list[tuple[int, int]]:
        return [one for probe in self._probes if not probe.has_held for one in probe.polled()]

    def next_look(self) -> float | None:
        looks = [probe.next_look() for probe in self._probes if not probe.has_held]
        return min((look for look in looks if look is not None), default=None)

    def close(self) -> None:
        for probe in self._probes:
            probe.close()


def make_probe(handle: Handle, condition: conditions.Condition, logs: Sequence[KeptLog]) -> Probe:
    """Return the probe of a condition; ``logs`` are searched for those of the log."""
    if isinstance(condition, conditions.AllOf | conditions.AnyOf):
        probes = [make_probe(handle, one, logs) for one in condition.conditions]
        return _Group(probes, every=isinstance(condition, conditions.AllOf))
    if isinstance(condition, conditions.Port):
        return _PortProbe(handle, condition)
    if isinstance(condition, conditions.Log):
        return _LogProbe(logs, condition)
    if isinstance(condition, conditions.Http):
        return _QueryProbe(handle, condition.query)
    if isinstance(condition, conditions.Query):
        return _QueryProbe(handle, condition)
    if isinstance(condition, conditions.Command):
        return _CommandProbe(handle, condition)
    assert isinstance(condition, conditions.File)
    return _FileProbe(handle, condition)


def _open_socket(handle: Handle, family: int, kind: int, protocol: int = 0) -> int:
    """Return a socket in the container's network. Raises :class:`ContainerStopped`."""
    handle.ready()
    if not handle.spec.own_network:
        return socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol).detach()
    _user_fd, builder_fd = handle.user_namespaces()
    try:
        return network_sockets.open_socket(handle.pidfd, builder_fd, family, kind, protocol)
    except ProcessLookupError as error:
        raise ContainerStopped.ended(handle.id) from error

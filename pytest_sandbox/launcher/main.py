"""The launcher: one small process for each client, and the parent of all containers' inits.

It keeps one container of the last spec prewarmed. It ends with its client, however that ends, and
kills every container then. It never has a second thread, so that it may fork at any moment.
"""

from __future__ import annotations

import errno
import os
import select
import sys
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from pytest_sandbox.errors import ContainerStopped
from pytest_sandbox.launcher.cgroup_remover import CgroupRemover
from pytest_sandbox.launcher.control_requests import answer_request
from pytest_sandbox.launcher.control_socket import ControlSocket
from pytest_sandbox.launcher.factory import ContainerFactory
from pytest_sandbox.launcher.layer_holder import LayerHolder
from pytest_sandbox.launcher.layer_remover import LayerRemover
from pytest_sandbox.launcher.networks import Networks
from pytest_sandbox.launcher.pool import Pool
from pytest_sandbox.launcher.relays import Relays
from pytest_sandbox.linux import signals
from pytest_sandbox.runtime import privileges, storage
from pytest_sandbox.runtime.protocol import (
    Channel,
    ErrorCode,
    InvalidMessageError,
    Message,
    close_all,
)
from pytest_sandbox.runtime.spec import Spec
from pytest_sandbox.runtime.step_error import error_message

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


class Launcher:
    """The loop that answers the client and the control socket, and watches the containers.

    ``session`` is the session's name, and ``lock`` the path of its lock file.
    """

    def __init__(self, client: Channel, session: str, lock: str) -> None:
        self._client = client
        self._client_pidfd = os.pidfd_open(os.getppid())
        self._lock = lock
        self._poll = select.poll()
        self._control = ControlSocket(lock.removesuffix(".lock"), self._poll)
        self._layer_holder = LayerHolder()
        self._relays = Relays()
        self._cgroups = CgroupRemover()
        networks = Networks()
        self._factory = ContainerFactory(session, lock, self._layer_holder, self._cgroups, networks)
        self._pool = Pool(self._factory, self._cgroups, LayerRemover(), networks, self._poll)
        #: The client's number of the spec that it asked for last.
        self._spec_id = 0
        # Both: a fork of the client may hold the socket open after the client has ended.
        for fd in (client.fileno(), self._client_pidfd):
            self._poll.register(fd, select.POLLIN)
        self._poll.register(self._factory.mounts, select.POLLPRI)

    # -- the loop

    def serve(self) -> None:
        """Answer until the client has ended."""
        host = self._factory.host
        self._client.send(
            {"op": "hello"}, [fd for fd in (host.user_fd, host.root_user_fd) if fd >= 0]
        )
        while True:
            ready = self._poll.poll(self._poll_timeout())
            if not ready and self._pool.next_spec:
                self._prewarm(self._pool.next_spec)
            for fd, _event in sorted(ready, key=self._order):
                try:
                    if not self._attend(fd):
                        return
                except Exception as error:  # noqa: BLE001 - the other containers must go on
                    traceback.print_exception(error)
            self._cgroups.retry()

    def _poll_timeout(self) -> float | None:
        """Return the milliseconds until there is something to do without a request."""
        if self._pool.next_spec:
            return self._pool.prewarm_delay
        waits = [self._control.expire(), self._cgroups.next_retry()]
        return min((seconds * 1000 for seconds in waits if seconds is not None), default=None)

    def _order(self, event: tuple[int, int]) -> int:
        """Sort the events of poll(2).

        What was mounted before a container was requested belongs in it, and the client comes
        before the control socket.
        """
        return {self._factory.mounts: 0, self._client.fileno(): 1}.get(event[0], 2)

    def _attend(self, fd: int) -> bool:
        """Handle an event of one descriptor; return False once the client has ended."""
        if fd == self._factory.mounts:
            self._factory.find_mounts()
        elif self._pool.has(fd):
            self._pool.dispose(fd)
        elif self._control.has(fd):
            self._control.attend(
                fd, lambda request: answer_request(self._pool, self._factory.host, request)
            )
        elif fd == self._client.fileno():
            return self._receive()
        return fd != self._client_pidfd

    def _receive(self) -> bool:
        """Handle one message of the client; return False once it has ended."""
        try:
            message, fds = self._client.receive()
        except EOFError as error:
            if isinstance(error, InvalidMessageError):
                traceback.print_exception(error)  # PYTEST_SANDBOX_DEBUG shows it
            return False
        close_all(fds)
        try:
            getattr(self, f"_do_{message['op']}")(message)
        except ContainerStopped:
            return self._answer(message, {"op": "error", "code": ErrorCode.ENDED})
        except Exception as error:  # noqa: BLE001 - one container's error must not end the others
            return self._answer(message, error_message(error, message["op"]))
        return True

    def _answer(self, message: Message, answer: Message, fds: Sequence[int] = ()) -> bool:
        """Answer a message, if it is a request; return False if the client has ended."""
        if "request" in message:
            try:
                self._client.send({**answer, "request": message["request"]}, fds)
            except (BrokenPipeError, ConnectionResetError):
                return False
        return True

    def _prewarm(self, spec: Spec) -> None:
        record = self._pool.prewarm(spec)
        if record is not None:
            message = {
                "op": "prewarmed",
                "id": record.id,
                "pid": record.created.pid,
                "spec_id": self._spec_id,
                "file_stamps": record.file_stamps,
            }
            with suppress(BrokenPipeError, ConnectionResetError):  # the next poll reports its end
                self._client.send(message, [record.pidfd])

    # -- the client's messages, as runtime/protocol.py describes them

    def _do_create(self, message: Message) -> None:
        self._spec_id = message["spec_id"]
        record = self._pool.take(Spec.from_json(message["spec"]))
        record.request = message["request"]
        self._pool.claim(record, message["metadata"])
        answer = {"op": "created", "id": record.id, "pid": record.created.pid}
        self._answer(message, answer, [record.pidfd])

    def _do_prewarm(self, message: Message) -> None:
        self._spec_id = message["spec_id"]
        self._prewarm(Spec.from_json(message["spec"]))

    def _do_claim(self, message: Message) -> None:
        # Its init may have been killed meanwhile: the client finds out by its pidfd.
        with suppress(ContainerStopped):
            self._pool.claim(self._pool.find(message["id"]), message["metadata"])

    def _do_closed(self, message: Message) -> None:
        has_unused_network = message.get("has_unused_network", False)
        self._pool.close_one(message["id"], has_unused_network=has_unused_network)

    def _do_cancel(self, message: Message) -> None:
        self._pool.cancel(message["request_id"])

    def _do_layer(self, message: Message) -> None:
        record = self._pool.find(message["id"])
        answer = {"op": "layer", "points": record.points}
        self._answer(message, answer, [record.created.layer])

    def _do_unreachable(self, message: Message) -> None:
        paths = self._factory.host.root.refused
        self._answer(message, {"op": "unreachable", "paths": paths})

    def _do_relay(self, message: Message) -> None:
        relay = self._relays.start(message["kind"])
        try:
            self._answer(message, {"op": "relay"}, [relay.fileno()])
        finally:
            relay.close()

    def _do_hold_layer(self, message: Message) -> None:
        record = self._pool.find(message["id"])
        if record.place.directory is not None:
            raise OSError(errno.EXDEV, "the layer is on disk")
        # A client that was interrupted asks again with the same key.
        if record.held_as != message["key"]:
            self._layer_holder.ask("put", message["key"], [record.created.layer_mount])
            record.held_as = message["key"]
        self._answer(message, {"op": "held"})

    def _do_new_layer(self, message: Message) -> None:
        fds = self._layer_holder.ask("make", message["key"])
        try:
            self._answer(message, {"op": "new_layer"}, fds)
        finally:
            close_all(fds)

    def _do_release_layer(self, message: Message) -> None:
        # Containers based on the layer have a mount of their own, and keep it.
        self._layer_holder.ask("release", message["key"])

    def _do_renew(self, message: Message) -> None:
        record = self._pool.renew(message["id"], Spec.from_json(message["spec"]))
        answer = {"op": "renewed", "id": record.id, "pid": record.created.pid}
        self._answer(message, answer, [record.pidfd])

    # -- the end

    def close(self) -> None:
        """Kill every container, and remove what the session has on disk."""
        try:
            self._pool.close()
        finally:
            self._control.close()
            storage.remove(self._lock)


def main() -> NoReturn:
    """Run with the arguments SESSION LOCK and descriptors: the client's socket, and the session's
    locks, which are held by being open.
    """
    session, lock, *fds = sys.argv[1:]
    signals.reset()
    client = Channel.of(int(fds[0]))
    try:
        privileges.gain_capabilities()  # it may execute this program again: the descriptors stay
        for fd in map(int, fds):
            os.set_inheritable(fd, False)
        privileges.leave_chroot()
        launcher = Launcher(client, session, lock)
    except OSError as error:
        client.send(error_message(error, "start the launcher"))
        sys.exit(1)
    try:
        launcher.serve()
    finally:
        # If this fails, the lock file stays, and the next session's cleanup tries again.
        launcher.close()
    with suppress(OSError):
        os.unlink(lock)
    sys.exit(0)

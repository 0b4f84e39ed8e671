"""Requests to the launcher: answers, interrupts, and errors."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import pytest
from crash import leftovers

from pytest_sandbox import Container, ContainerStopped, SetupError
from pytest_sandbox.client import session
from pytest_sandbox.container import remote
from pytest_sandbox.linux import local_socket, process
from pytest_sandbox.runtime.protocol import Channel, InvalidMessageError

pytestmark = pytest.mark.needs("root")


class Interrupt(BaseException):
    """The exception that a signal handler raises."""


@pytest.fixture
def interrupt():
    """Raise :class:`Interrupt` at SIGALRM, after so many seconds."""

    def handler(*_arguments):
        raise Interrupt

    before = signal.signal(signal.SIGALRM, handler)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def python(code, **keywords):
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
        **keywords,
    )
    return done.stdout, done.stderr


def await_true(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        select.select([], [], [], 0.01)


@pytest.mark.needs("limits")
def test_an_answer_belongs_to_its_request(interrupt):
    """After an interrupt between request and answer, the next container has its own limits, and the
    first one is closed.
    """
    with Container() as first:
        launcher = first.handle.launcher.process.pid
        os.kill(launcher, signal.SIGSTOP)  # a busy machine: the launcher is late
        try:
            interrupt(0.05)
            with pytest.raises(Interrupt):
                Container(memory="64m").start()
        finally:
            waker = threading.Timer(0.1, os.kill, (launcher, signal.SIGCONT))
            waker.start()
        with Container(memory="512m") as second:
            waker.join()
            assert 512 << 20 == second.stats().memory_limit
            assert 512 << 20 == second.handle.cgroup.stats().memory_limit
            mine = {first.id, second.id}
            await_true(
                lambda: (
                    mine
                    == {
                        one.id
                        for one in remote.list_containers()
                        if one.session == first.handle.launcher.name
                    }
                )
            )


def test_an_interrupt_while_the_launcher_starts(interrupt):
    """The start continues with the next call, with the same launcher."""
    code = """
import os, signal
from pytest_sandbox import Container
from pytest_sandbox.client import session, start, start
class Interrupt(BaseException): pass
def handler(*_): raise Interrupt
signal.signal(signal.SIGALRM, handler)
spawn = start._spawn
def late(*arguments):
    signal.setitimer(signal.ITIMER_REAL, 0.001)
    return spawn(*arguments)
start._spawn = late
try: Container().start()
except Interrupt: print("interrupted")
first = session.running()
with Container() as c:
    status = c.run(["true"], capture_output=True).returncode  # no thread for stdout
    print(status, c.handle.launcher is first, len(os.listdir("/proc/self/task")))
"""
    assert ("interrupted\n0 True 1\n", "") == python(code)


def test_interrupts_at_random_moments(tmp_path):
    """Sixty interrupts of start, close, commit and diff cause no wrong limit, no hang and
    no leak.
    """
    assert ["done"] == interrupted(60, "start", "close", "commit", "diff")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_interrupts_at_random_moments():
    """The same with 600 interrupts (PYTEST_SANDBOX_INTERRUPTS), and with commands and calls."""
    rounds = int(os.environ.get("PYTEST_SANDBOX_INTERRUPTS", "600"))
    assert ["done"] == interrupted(rounds, "start", "run", "call", "commit", "close", "diff")


def interrupted(rounds, *operations):
    directory = os.path.dirname(leftovers.__file__)
    command = [
        sys.executable,
        os.path.join(directory, "interrupts.py"),
        str(rounds),
        "1",
        *operations,
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            [os.path.dirname(directory), os.path.dirname(os.path.dirname(directory))]
        ),
    }
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=60 + rounds, env=environment
    )
    return (done.stdout + done.stderr).splitlines()


def test_the_garbage_collector_closes_a_container_within_a_request():
    """A finalizer that runs within a request does not wait for a lock of its own thread."""
    code = """
import gc
from pytest_sandbox import Container
class Holder: pass
first = Container().start()
def once(threshold):
    gc.disable()
    h = Holder(); h.c = Container().start(); h.me = h; del h
    gc.set_threshold(gc.get_count()[0] + threshold, 1000, 1000); gc.enable()
    first.handle.launcher.request({"op": "layer", "id": first.id})
    gc.disable()
for threshold in range(1, 60, 3): once(threshold)
first.close()
print("done")
"""
    assert ("done\n", "") == python(code)


def test_a_finalizer_within_a_request():
    """A finalizer may close a container within a request; starting one is refused with the
    reason.
    """
    with Container() as first, Container() as other:
        requests = first.handle.launcher._requests

        def finalize():
            other.close()
            with pytest.raises(SetupError, match="a finalizer or a signal handler sends"):
                Container().start()
            return requests.ask_serialized({"op": "layer", "id": first.id})

        answer, fds = requests.serialized(finalize)
        assert ("layer", 1, "stopped") == (answer["op"], len(fds), other.status)
        pidfd = os.pidfd_open(os.getpid())
        os.close(pidfd)
        await_true(lambda: other.id not in {one.id for one in remote.list_containers()})


def test_an_unreferenced_container_is_killed():
    """Its processes end at once, and the rest is removed by the next start or close."""
    made = Container().start()
    pidfd, cgroup = os.dup(made.handle.pidfd), made.handle.cgroup
    del made
    try:
        assert process.ended(pidfd, 20)
    finally:
        os.close(pidfd)
    with Container():
        await_true(lambda: cgroup.task_count() is None)


def test_a_committed_container_whose_init_was_killed():
    """A committed container goes on after its init was killed, since the layer holder has its
    layer; others are not affected.
    """
    with Container() as other, Container() as container:
        container.write_text("/tmp/x", "text")
        container.commit()
        os.kill(container.pid, signal.SIGKILL)
        assert process.ended(container.handle.pidfd, 20)
        assert ("running", "text") == (container.status, container.read_text("/tmp/x"))
        assert ("running", 0) == (other.status, other.run(["true"]).returncode)


@pytest.mark.parametrize("op", ["layer", "hold_layer", "renew"])
def test_a_request_for_an_ended_container(op):
    """The request raises ContainerStopped, and other containers go on."""
    with Container() as other:
        with pytest.raises(ContainerStopped, match="the container no-such-id has ended"):
            other.handle.launcher.request(
                {"op": op, "id": "no-such-id", "key": "x", "spec": other.handle.spec.to_json()}
            )
        assert 0 == other.run(["true"]).returncode


@pytest.mark.parametrize(
    "message",
    [
        {"op": "nonsense"},
        {"op": "create"},
        {"op": "create", "spec": {"lower": 3}, "spec_id": 0, "metadata": None},
    ],
)
def test_a_request_that_fails_in_the_launcher(message):
    """Any error in the launcher is the answer to its request, and the launcher goes on."""
    with Container() as other:
        with pytest.raises(SetupError, match=message["op"]):
            other.handle.launcher.request(message)
        other.handle.launcher.tell(message)
        assert ([], 0) == (other.diff(), other.run(["true"]).returncode)


@pytest.mark.needs("limits")
def test_a_paused_container_whose_init_is_killed():
    """A paused container whose init was killed is closed without waiting, and nothing is left."""
    container = Container().start()
    with container.popen(["sleep", "100"]):
        container.pause()
        os.kill(container.pid, signal.SIGKILL)
        container.close()
    assert "stopped" == container.status
    directories = session.current().session.directories
    await_true(
        lambda: not any(os.path.exists(f"{directory}/{container.id}") for directory in directories)
    )


def test_the_launcher_has_one_thread_and_the_layer_holder_ends_with_the_client():
    """The launcher has one thread while it removes a layer on disk, and SIGKILL of the client ends
    all its processes.
    """
    code = """
import os, signal
from pytest_sandbox import Container
a = Container(storage="disk").start()
script = "cd /tmp; for i in $(seq 1 300); do mkdir $i; touch $i/1 $i/2 $i/3; done"
a.run(["sh", "-c", script], check=True)
b = Container().start()
b.write_text("/tmp/x", "x")
a.close()
with Container(image=b.commit()) as c:
    threads = os.listdir(f"/proc/{c.handle.launcher.process.pid}/task")
    print(c.read_text("/tmp/x"), len(threads), os.getpid(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    out, _error = python(code)
    text, threads, client = out.split()
    assert ("x", "1") == (text, threads)
    assert [] == leftovers.of(int(client))


CHILDREN = {
    "ignored": "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    "reaped": """
def reap(*_):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]: pass
    except ChildProcessError: pass
signal.signal(signal.SIGCHLD, reap)
""",
}


@pytest.mark.parametrize("how", CHILDREN)
def test_a_caller_that_reaps_all_children(how):
    """Containers work while SIGCHLD is ignored, and while a handler reaps every child."""
    code = f"""
import os, signal
{CHILDREN[how]}
from pytest_sandbox import Container
for turn in range(3):
    with Container(hostname="other", storage="disk" if turn == 1 else "memory") as c:
        with Container(image=c.commit()) as d: print(c.diff(), d.status)
print(os.getpid())
"""
    out, error = python(code)
    *said, client = out.splitlines()
    assert (["[] running"] * 3, "") == (said, error)
    assert [] == leftovers.of(int(client))


def test_timeouts_of_any_length():
    """A timeout longer than poll(2) accepts is no error."""
    assert (None, 0, 1, 1500, (1 << 31) - 1) == tuple(
        map(process.milliseconds, (None, -5, 0.0001, 1.5, 3e9))
    )
    pidfd = os.pidfd_open(os.getpid())
    reader, writer = os.pipe()
    os.write(writer, b"x")
    try:
        assert (False, True) == (process.ended(pidfd, 0), process.is_readable(reader, 1e9))
    finally:
        for fd in (pidfd, reader, writer):
            os.close(fd)


class TestControlSocket:
    """Slow or faulty clients of the control socket do not delay others."""

    @pytest.fixture
    def path(self):
        with Container() as container:
            yield remote._socket_of(container.handle.launcher.name)

    def connect(self, path):
        return local_socket.connect(path, 20)

    def test_half_a_request_does_not_block_others(self, path):
        """The launcher answers other clients while one has sent half a request."""
        with self.connect(path) as slow:
            slow.sendall(struct.pack("!II", 60, 0))
            for _ in range(3):
                slow.sendall(b" ")
                assert 1 == len(
                    [
                        one
                        for one in remote.list_containers()
                        if one.session == session.current().name
                    ]
                )
            with Container() as other:
                assert [] == other.diff()

    def test_a_request_byte_by_byte(self, path):
        """A request that arrives byte by byte is answered once it is complete."""
        with self.connect(path) as client:
            body = b'{"op": "list", "stats": false}'
            for byte in struct.pack("!II", len(body), 0) + body:
                client.sendall(bytes([byte]))
            answer, _fds = Channel(client).receive()
        assert ("list", 1) == (answer["op"], len(answer["containers"]))

    @pytest.mark.parametrize(
        "request_",
        [
            struct.pack("!II", 1 << 31, 0),
            struct.pack("!II", 2, 1) + b"{}",
            struct.pack("!II", 2, 0) + b"[]",
            struct.pack("!II", 2, 0) + b"{}x",
            struct.pack("!II", 2, 0) + b"\xff\xff",
            struct.pack("!II", 2, 0) + b"{}",
            struct.pack("!II", 14, 0) + b'{"op": "nope"}',
        ],
    )
    def test_an_invalid_request_closes_the_connection(self, path, request_):
        """The connection is closed, and the launcher goes on."""
        with self.connect(path) as client:
            client.sendall(request_)
            assert b"" == client.recv(1)
        assert 1 == len(
            [one for one in remote.list_containers() if one.session == session.current().name]
        )

    def test_too_many_clients_are_refused(self, path):
        """Clients above the limit are refused, and accepted again after others have left."""
        clients = [self.connect(path) for _ in range(64)]
        try:
            await_true(lambda: self.refused(path))
        finally:
            for client in clients:
                client.close()
        await_true(lambda: not self.refused(path))
        assert 1 == len(
            [one for one in remote.list_containers() if one.session == session.current().name]
        )

    def refused(self, path):
        with self.connect(path) as client:
            client.settimeout(0.1)
            try:
                return client.recv(1) == b""
            except (TimeoutError, ConnectionResetError):
                return False


@pytest.mark.parametrize(
    "frame",
    [
        struct.pack("!II", 1 << 31, 0),
        struct.pack("!II", 4, 254),
        struct.pack("!II", 4, 0) + b"[[[[",
    ],
)
def test_a_message_with_an_invalid_size_is_refused(frame):
    """The header is refused before memory is allocated for the message."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(frame)
        with pytest.raises(InvalidMessageError):
            Channel(ours).receive()

"""A fork of the calling process that is inside a container: how it enters, how it is awaited, and
``call`` on top.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
import time
import warnings
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from pytest_sandbox.client import session
from pytest_sandbox.container import processes, values
from pytest_sandbox.container.processes import END_TIMEOUT
from pytest_sandbox.container.uid_check import check_uid
from pytest_sandbox.errors import OutOfMemory, SandboxError, SetupError, UnsupportedError
from pytest_sandbox.linux import huge_pages, namespaces, process
from pytest_sandbox.linux import syscall as sc
from pytest_sandbox.linux.signals import Deferred
from pytest_sandbox.linux.syscall_batch import Failure, SyscallBatch
from pytest_sandbox.outcome import Exited, OOMKilled, Outcome, Signaled, TimedOut
from pytest_sandbox.runtime.protocol import Channel, close_all

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

    from pytest_sandbox.container.container import Container
    from pytest_sandbox.linux.syscall_batch import Result
    from pytest_sandbox.runtime.join import Entrance
    from pytest_sandbox.runtime.users import User

__all__ = ["Child", "Forks", "as_builder", "fork_into", "forks", "run_call"]

__tracebackhide__ = (
    True  # pytest shows the line of the test that asked, not ours; --full-trace shows all
)

_CHUNK = 1 << 16
#: Bytes that the answer of a call may have; it comes from inside, and is kept in memory more than
#: once.
_LONGEST_ANSWER = 64 << 20
#: Seconds for a process outside of the container, which nothing inside can stop, to fork into it.
_ENTER_TIMEOUT = 30.0


class Child:
    """The forked process, as its parent sees it: ``pid`` (outside), ``pidfd`` (poll(2) tells when
    it has ended).
    """

    def __init__(self, container: Container, pid: int, kills: int) -> None:
        self.container = container
        self.pid = pid
        self.pidfd = _pidfd(pid)
        self._kills = kills
        self._outcome: Outcome | None = None
        self._code: int | None = None
        self._reaping = threading.Lock()
        container.children.add(self)

    def wait(self, timeout: float | None = None, *, everything: bool = True) -> Outcome:
        """Wait for the end, and return what it was.

        Over ``timeout`` seconds it is killed with all below it, or with ``everything`` in the
        container but init. Returns within :data:`END_TIMEOUT` seconds more, whatever runs inside.
        """
        if self._outcome is not None:
            return self._outcome
        overrun: TimedOut | None = None
        if not process.ended(self.pidfd, timeout):
            overrun = TimedOut(timeout or 0, self._running())
            self.kill(everything=everything)
        code = self._reaped()
        self._outcome = overrun or self._verdict(code)
        return self._outcome

    def _running(self) -> tuple[str, ...]:
        """Return the command lines of what runs inside, for people to read."""
        try:
            return tuple(line for _pid, line in self.container.processes())
        except (OSError, SandboxError):
            return ()

    def reap(self) -> None:
        """Kill it and take its status: until then, its PID namespace does not end
        (pid_namespaces(7)).
        """
        if self._code is None:
            process.kill(self.pidfd, signal.SIGKILL)
            self._reaped()

    def _reaped(self) -> int:
        with self._reaping:
            if self._code is None:
                with self.container.cgroup.unthrottled():
                    code = process.await_exit(self.pid, self.pidfd, END_TIMEOUT)
                with Deferred():
                    # Where the kernel does not say, its caller waits for all its children by
                    # itself.
                    self._code = -signal.SIGKILL if code is None else code
                    os.close(self.pidfd)
                    self.container.children.discard(self)
            return self._code

    def _verdict(self, code: int) -> Outcome:
        if code >= 0:
            return Exited(code)
        if code == -signal.SIGKILL and self.container.cgroup.oom_kills() > self._kills:
            used = self.container.figures()
            return OOMKilled(
                used.memory_limit, used.memory_peak or 0, self.container.cgroup.page_cache_bytes()
            )
        return Signaled(-code)

    def kill(self, *, everything: bool = True) -> None:
        """Kill everything inside but init, or only the process and all below it."""
        with suppress(SandboxError, OSError):
            if everything:
                processes.kill_all(self.container)
            else:
                processes.kill_tree(self.container, self.pid)
        process.kill(self.pidfd, signal.SIGKILL)


def _pidfd(pid: int) -> int:
    """Return a pidfd; of a child that has ended already, and that the kernel has reaped since
    SIGCHLD is ignored, a descriptor that poll(2) reports as readable too.
    """
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


class Forks:
    """Counts the forks of this process: after 16, 32, 64 ... of them its memory is gathered in huge
    pages, which costs what some ten of them do.
    """

    def __init__(self) -> None:
        self._made = 0
        self._next = 16

    def count(self) -> None:
        """Count one more."""
        self._made += 1

    def gather(self) -> None:
        """Gather the memory if it is time to: before a fork, or where nobody's time is taken."""
        if self._made >= self._next:
            self._next = 2 * self._made
            huge_pages.collapse()


forks = Forks()


def fork_into(
    container: Container, living: Iterable[Container], *, shielded: bool = False
) -> Child | None:
    """Fork; the child is in the container when this returns None.

    ``shielded`` is for a container in which something may run already: nothing of this process can
    be seen there, neither its command line nor, at any time, its memory, environment and
    descriptors. It costs a second fork, and the child cannot be traced, nor dumps core.
    """
    try:
        return _fork_into(container, living, shielded=shielded, twice=shielded)
    except UnsupportedError:
        # This thread could not come back from the container's PID namespace. A second process,
        # which need not, can fork there.
        return _fork_into(container, living, shielded=shielded, twice=True)


def _fork_into(
    container: Container, living: Iterable[Container], *, shielded: bool, twice: bool
) -> Child | None:
    forks.gather()
    forks.count()
    kills = container.cgroup.oom_kills()
    entrance = container.entrance()
    lock_down = entrance.lock_down(_user_of(container))
    twice = twice or entrance.builder_fd >= 0
    batch, clone = entrance.begin(shielded=shielded) if twice else (SyscallBatch(), None)
    if clone is None:
        # os.fork() has no cgroup to begin in, as clone3(2) has on version 2: the fork joins it.
        replace(entrance, joins=container.cgroup.join_paths()).add_enter(batch)
    _add_arrival(container, batch, living)
    batch.prepare()
    # An interrupt between the fork and what notes it would leave a child that nobody waits for, or
    # a second caller.
    batch.block_signals()
    pid = -1
    try:
        pid = (
            _fork_once(entrance)
            if clone is None
            else _fork_twice(container, batch, clone, shielded=shielded)
        )
        child = Child(container, pid, kills) if pid else None
    finally:
        if pid:
            batch.unblock_signals()
    if child is None:
        _enter(container, batch if clone is None else None, lock_down)
    return child


def _user_of(container: Container) -> User | None:
    """Return the user of a fork; None for the caller's."""
    if container.settings.user is None:
        return None
    user = container.find_user(container.settings.user)
    check_uid(container.launcher, container.spec, user.uid)
    return user


def _add_arrival(container: Container, batch: SyscallBatch, living: Iterable[Container]) -> None:
    """Append what the child does once it is inside: let go of this library's own descriptors, take
    interrupts again.
    """
    settings = container.settings
    directories = [settings.workdir] if settings.workdir else [os.getcwd(), container.workdir]
    for directory in ["/", *reversed(directories)]:
        batch.add(
            "change to the working directory", "chdir", os.fsencode(directory), go_on=True
        )  # the last that is there
    launcher = session.running()
    own = [] if launcher is None else launcher.descriptors()
    for one in {container, *living}:
        own += one.descriptors()
    for fd in own:
        batch.add("let go of the library's own", "close", fd, go_on=True)
    batch.restore_signals("take interrupts again")


def _fork_once(entrance: Entrance) -> int:
    """Fork with the container's PID namespace set for the children of this thread."""
    own = namespaces.open_for_children()
    pid = -1
    try:
        namespaces.set_for_children(entrance.pidfd)
        pid = _fork()
    finally:
        if pid:  # the child is in there for good
            namespaces.set_for_children(own)
        os.close(own)
    return pid


def _fork_twice(container: Container, batch: SyscallBatch, clone: Result, *, shielded: bool) -> int:
    """Fork a process that enters the namespaces, and is forked there: a second child of this
    process (CLONE_PARENT).

    Entering namespaces before that takes a process of one thread, which this one need not be.
    """
    arguments = process.argument_memory() if shielded else (0, 0)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        elder = _fork()
        if not elder:
            _be_elder(batch, clone, writer, arguments)
            return 0
        os.close(writer)
        writer = -1
        return _younger(container, elder, reader)
    finally:
        close_all([fd for fd in (reader, writer) if fd >= 0])


def _be_elder(batch: SyscallBatch, clone: Result, writer: int, arguments: tuple[int, int]) -> None:
    """Enter and fork; return in the younger process, and end in this one."""
    status = 125
    try:
        sc.clear_memory(*arguments)
        younger = batch.run_fork(clone)
        failure = batch.failure()
        if younger == 0 and failure is None:
            status = -1
            return
        answer = (
            {"pid": younger}
            if failure is None
            else {"step": failure.step, "errno": failure.errno, "call": failure.call}
        )
        os.write(writer, json.dumps(answer).encode() + b"\n")
    finally:
        if status >= 0:
            os._exit(status)


def _younger(container: Container, elder: int, reader: int) -> int:
    """Return the PID of the process that the elder has forked into the container."""
    pidfd = os.pidfd_open(elder)
    try:
        answer = _first_line(reader, _ENTER_TIMEOUT)
        process.kill(pidfd, signal.SIGKILL)  # it has nothing more to do
        process.await_exit(elder, pidfd, END_TIMEOUT)
    finally:
        os.close(pidfd)
    if not answer:
        raise SetupError(
            "enter the container's PID namespace", "the process that forks there was killed"
        )
    said = json.loads(answer)
    if "pid" not in said:
        container.raise_for(Failure(said["step"], said["errno"], said["call"]))
    return int(said["pid"])


def _first_line(reader: int, timeout: float) -> bytes:
    """Read up to the first newline, the end of file, or the end of the time."""
    deadline, data = time.monotonic() + timeout, b""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    while not data.endswith(b"\n") and poll.poll(process.milliseconds(deadline - time.monotonic())):
        part = os.read(reader, _CHUNK)
        if not part:
            break
        data += part
    return data


def _fork() -> int:
    try:
        if threading.active_count() == 1:
            return os.fork()
        with warnings.catch_warnings():
            # The threads of a worker (execnet's) are not needed in the child, which runs one test
            # and ends.
            warnings.simplefilter("ignore", DeprecationWarning)
            return os.fork()
    except BlockingIOError as error:
        from pytest_sandbox.host import diagnosis

        raise diagnosis.no_processes() from error


def _enter(container: Container, batch: SyscallBatch | None, lock_down: SyscallBatch) -> None:
    try:
        if batch is not None:
            batch.run()
        lock_down.run()
    except OSError as error:  # half inside is nowhere
        os.write(
            2,
            f"pytest-sandbox: the test could not enter its container: {error.strerror}\n".encode(),
        )
        os._exit(125)
    except KeyboardInterrupt:  # it came before this had a session of its own
        os._exit(128 + signal.SIGINT)
    session.leave()
    additions = container.rootfs.additions
    if additions:
        os.environ.update(additions)


def as_builder(builder_fd: int, func: Callable[[], Any]) -> Any:
    """Return what a function returns, as JSON can hold it, with the rights of who built the
    container: files inside belong to others too.

    Without a ``builder_fd`` they are this process's own; otherwise it runs in a fork. Raises the
    function's :class:`OSError`, and :class:`SandboxError` where it fails otherwise.
    """
    if builder_fd < 0:
        return func()
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = _fork()
    if not pid:
        try:
            sc.setns(builder_fd, sc.CLONE_NEWUSER)
            answer = _answered(func)
            with open(writer, "w", encoding="utf-8") as file:
                json.dump(answer, file)
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as file:
        text = file.read()
    os.waitpid(pid, 0)
    if not text:
        raise SandboxError(
            "what the container wrote cannot be read by this user. Look at it from inside."
        )
    value, error = json.loads(text)
    if error is not None:
        raise OSError(*error)
    return value


def _answered(
    func: Callable[[], Any],
) -> tuple[Any, tuple[int | None, str | None, str | None] | None]:
    """Return what a function returns, and what the kernel refused it."""
    try:
        return func(), None
    except OSError as error:
        return None, (error.errno, error.strerror, error.filename)


def run_call(
    container: Container,
    func: Callable[..., Any],
    args: tuple[Any, ...],
    keywords: dict[str, Any],
    timeout: float | None,
) -> Any:
    """Fork, run the function inside, and bring its value or its exception back."""
    ours, theirs = (end.socket for end in Channel.pair())
    with ours, theirs:
        _flush()  # or the fork would write it once more
        child = fork_into(container, container.living(), shielded=True)
        if child is None:
            ours.close()
            _answer(theirs, func, args, keywords)
        theirs.close()
        try:
            end = None if timeout is None else time.monotonic() + timeout
            data = _collect(ours, child.pidfd, end)
            outcome = child.wait(
                None if end is None else max(0, end - time.monotonic()), everything=False
            )
        except BaseException:
            child.reap()
            raise
    if isinstance(outcome, TimedOut):
        raise TimeoutError(
            f"call() was killed after {timeout} seconds; inside ran: {', '.join(outcome.processes)}"
        )
    return _value(outcome, data)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # whatever stands there; None, where it is closed
            stream.flush()


def _answer(
    to: socket.socket, func: Callable[..., Any], args: tuple[Any, ...], keywords: dict[str, Any]
) -> NoReturn:
    try:
        try:
            answer = json.dumps({"value": values.encode(func(*args, **keywords))})
        except BaseException as error:  # noqa: BLE001 - it is the caller's
            answer = json.dumps({"error": values.encode_exception(error)})
        _flush()
        to.sendall(answer.encode() + b"\n")
    finally:
        os._exit(0)


def _collect(ours: socket.socket, pidfd: int, end: float | None) -> bytes:
    """Read until the answer's end, the child's end, the end of the time, or more than an answer may
    have.
    """
    poll = select.poll()
    for fd in (ours.fileno(), pidfd):
        poll.register(fd, select.POLLIN)
    data = bytearray()
    while len(data) <= _LONGEST_ANSWER:
        ready = dict(
            poll.poll(None if end is None else process.milliseconds(end - time.monotonic()))
        )
        if ours.fileno() not in ready:  # the child has ended, or the time
            return bytes(data)
        try:
            part = ours.recv(_CHUNK)
        except ConnectionResetError:
            part = b""
        data += part
        if not part or part.endswith(b"\n"):
            return bytes(data)
    raise SandboxError(
        f"call() was answered with more than {_LONGEST_ANSWER >> 20} MiB. Return less, or write a "
        "file and copy_out() it."
    )


def _value(outcome: Outcome, data: bytes) -> Any:
    if isinstance(outcome, OOMKilled):
        raise OutOfMemory(
            -signal.SIGKILL, "call()", memory_limit=outcome.limit, memory_peak=outcome.peak
        )
    if not data.endswith(b"\n"):
        raise SandboxError(f"call() ended without an answer: {outcome}. Look at what it did last.")
    error, value = _understood(data)
    if error is not None:
        raise error
    return value


def _understood(data: bytes) -> tuple[BaseException | None, Any]:
    """Return the exception or the value; the answer may be anything, for what ran inside could
    write to the socket too.
    """
    try:
        answer = json.loads(data)
        return (
            (values.decode_exception(answer["error"]), None)
            if "error" in answer
            else (None, values.decode(answer["value"]))
        )
    except SandboxError:
        raise
    except Exception as error:  # noqa: BLE001 - a forged answer may have any fault
        raise SandboxError(
            f"call() was answered with what is no answer ({type(error).__name__}). Look at what "
            "wrote to its descriptors."
        ) from None

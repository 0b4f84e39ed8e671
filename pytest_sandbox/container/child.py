"""A fork of the calling process that is inside a container: how it enters, how it is awaited, and ``call`` on top."""

from __future__ import annotations

import json
import os
import select
import signal
import threading
import time
import warnings
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from pytest_sandbox.channel import Channel, close_all
from pytest_sandbox.container import session, values
from pytest_sandbox.errors import OutOfMemory, SandboxError, SetupError
from pytest_sandbox.linux import namespaces, pages, process
from pytest_sandbox.linux import syscall as sc
from pytest_sandbox.linux.program import Program
from pytest_sandbox.outcome import Exited, OOMKilled, Outcome, Signaled, TimedOut

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

    from pytest_sandbox.container import Container
    from pytest_sandbox.launcher.entering import Entrance

__all__ = ["Child", "Forks", "as_builder", "fork_into", "forks", "run_call"]

__tracebackhide__ = True  # pytest shows the line of the test that asked, not ours; --full-trace shows all

_CHUNK = 1 << 16


class Child:
    """The forked process, as its parent sees it: ``pid`` (outside), ``pidfd`` (poll(2) tells when it has ended)."""

    def __init__(self, container: Container, pid: int, kills: int) -> None:
        self.container = container
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self._kills = kills
        self._outcome: Outcome | None = None
        self._code: int | None = None
        self._reaping = threading.Lock()
        container.children.add(self)

    def wait(self, timeout: float | None = None) -> Outcome:
        """Wait for the end, and return what it was; over ``timeout`` seconds everything inside but init is killed."""
        if self._outcome is not None:
            return self._outcome
        overrun: TimedOut | None = None
        if not process.ended(self.pidfd, timeout):
            running = tuple(line for _pid, line in self.container.processes())
            overrun = TimedOut(timeout or 0, running)
            self.kill()
            process.ended(self.pidfd)
        code = self._reaped()
        self._outcome = overrun or self._verdict(code)
        return self._outcome

    def reap(self) -> None:
        """Kill it and take its status: until then, its PID namespace does not end (pid_namespaces(7))."""
        if self._code is None:
            process.kill(self.pidfd, signal.SIGKILL)
            self._reaped()

    def _reaped(self) -> int:
        with self._reaping:
            if self._code is None:
                process.ended(self.pidfd)
                try:
                    self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
                except ChildProcessError:  # the caller waits for all its children by itself
                    self._code = -signal.SIGKILL
                os.close(self.pidfd)
                self.container.children.discard(self)
            return self._code

    def _verdict(self, code: int) -> Outcome:
        if code >= 0:
            return Exited(code)
        if code == -signal.SIGKILL and self.container.group.oom_kills() > self._kills:
            used = self.container.figures()
            return OOMKilled(used.memory_limit, used.memory_peak or 0, self.container.group.files_bytes())
        return Signaled(-code)

    def kill(self) -> None:
        """Kill everything inside but init."""
        process.kill(self.pidfd, signal.SIGKILL)
        with suppress(SandboxError):
            self.container.kill()


class Forks:
    """Counts the forks of this process: after 16, 32, 64 ... of them its memory is gathered in huge pages, which costs what some ten of them do."""

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
            pages.gather()


forks = Forks()


def fork_into(container: Container, living: Iterable[Container]) -> Child | None:
    """Fork once; the child is in the container's PID namespace from its first moment, and in the rest before this returns None."""
    forks.gather()
    forks.count()
    kills = container.group.oom_kills()
    entrance = container.entrance()
    program = _way_in(container, entrance, living)
    program.prepare()
    lock_down = entrance.lock_down(None if container.settings.user is None else container.find_user(container.settings.user))
    # An interrupt between the fork and what notes it would leave a child that nobody waits for, or a second caller.
    program.block_signals()
    pid = -1
    try:
        pid = _fork_as_root(entrance) if entrance.builder_fd < 0 else _fork_as_user(entrance)
        child = Child(container, pid, kills) if pid else None
    finally:
        if pid:
            program.unblock_signals()
    if child is None:
        _enter(container, program, lock_down)
    return child


def _way_in(container: Container, entrance: Entrance, living: Iterable[Container]) -> Program:
    """Return what the child does first: it enters, lets go of this library's own descriptors, and takes interrupts again."""
    settings, program = container.settings, Program()
    folders = [settings.workdir] if settings.workdir else [os.getcwd(), container.workdir]
    replace(entrance, joins=container.group.joins()).add_enter(program)
    for folder in ["/", *reversed(folders)]:
        program.add("change to the working folder", "chdir", os.fsencode(folder), go_on=True)  # the last that is there
    launcher = session.running()
    own = [] if launcher is None else launcher.descriptors()
    for one in {container, *living}:
        own += one.descriptors()
    for fd in own:
        program.add("let go of the library's own", "close", fd, go_on=True)
    program.restore_signals("take interrupts again")
    return program


def _fork_as_root(entrance: Entrance) -> int:
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


def _fork_as_user(entrance: Entrance) -> int:
    """Fork twice: entering a PID namespace takes power in one's own user namespace, which only a process of one thread can change.

    The second is a child of this process too, so it is awaited as any other.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    elder = _fork()
    if elder:
        os.close(writer)
        with open(reader, "rb") as file:
            number = file.read()
        os.waitpid(elder, 0)
        if not number:
            raise SetupError("enter the container's PID namespace")
        return int(number)
    try:
        sc.setns(entrance.builder_fd, sc.CLONE_NEWUSER)
        namespaces.set_for_children(entrance.pidfd)
        younger = sc.fork_sibling()
    except BaseException as error:  # noqa: BLE001 - half inside is nowhere
        os.write(2, f"pytest-sandbox: the test could not enter its container: {error}\n".encode())
        os._exit(125)
    if younger:
        os.write(writer, b"%d" % younger)
        os._exit(0)
    close_all([reader, writer])
    return 0


def _fork() -> int:
    if threading.active_count() == 1:
        return os.fork()
    with warnings.catch_warnings():
        # The threads of a worker (execnet's) are not needed in the child, which runs one test and ends.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _enter(container: Container, program: Program, lock_down: Program) -> None:
    try:
        program.run()
        lock_down.run()
    except OSError as error:  # half inside is nowhere
        os.write(2, f"pytest-sandbox: the test could not enter its container: {error.strerror}\n".encode())
        os._exit(125)
    except KeyboardInterrupt:  # it came before this had a session of its own
        os._exit(128 + signal.SIGINT)
    session.leave()
    additions = container.ground.additions
    if additions:
        os.environ.update(additions)


def as_builder(builder_fd: int, func: Callable[[], Any]) -> Any:
    """Return what a function returns, as JSON can hold it, with the rights of who built the container: files inside belong to others too.

    Without a ``builder_fd`` they are this process's own; otherwise it runs in a fork. Raises the function's :class:`OSError`, and
    :class:`SandboxError` where it fails otherwise.
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
        raise SandboxError("what the container wrote cannot be read by this user. Look at it from inside.")
    value, error = json.loads(text)
    if error is not None:
        raise OSError(*error)
    return value


def _answered(func: Callable[[], Any]) -> tuple[Any, tuple[int | None, str | None, str | None] | None]:
    """Return what a function returns, and what the kernel refused it."""
    try:
        return func(), None
    except OSError as error:
        return None, (error.errno, error.strerror, error.filename)


def run_call(container: Container, func: Callable[..., Any], args: tuple[Any, ...], keywords: dict[str, Any], timeout: float | None) -> Any:
    """Fork, run the function inside, and bring its value or its exception back."""
    ours, theirs = (end.socket for end in Channel.pair())
    with ours, theirs:
        child = container.fork()
        if child is None:
            ours.close()
            _answer(theirs, func, args, keywords)
        theirs.close()
        try:
            end = None if timeout is None else time.monotonic() + timeout
            data = _collect(ours, child.pidfd, end)
            outcome = child.wait(None if end is None else max(0, end - time.monotonic()))
        except BaseException:
            child.reap()
            raise
    if isinstance(outcome, TimedOut):
        raise TimeoutError(f"call() was killed after {timeout} seconds; inside ran: {', '.join(outcome.processes)}")
    return _value(outcome, data)


def _answer(to: socket.socket, func: Callable[..., Any], args: tuple[Any, ...], keywords: dict[str, Any]) -> NoReturn:
    try:
        try:
            answer = json.dumps({"value": values.encode(func(*args, **keywords))})
        except BaseException as error:  # noqa: BLE001 - it is the caller's
            answer = json.dumps({"error": values.encode_exception(error)})
        to.sendall(answer.encode() + b"\n")
    finally:
        os._exit(0)


def _collect(ours: socket.socket, pidfd: int, end: float | None) -> bytes:
    """Read until the answer's end, the child's end, or the end of the time."""
    poll = select.poll()
    for fd in (ours.fileno(), pidfd):
        poll.register(fd, select.POLLIN)
    parts: list[bytes] = []
    while True:
        left = None if end is None else max(0, end - time.monotonic()) * 1000
        ready = dict(poll.poll(left))
        if ours.fileno() not in ready:  # the child has ended, or the time
            return b"".join(parts)
        try:
            part = ours.recv(_CHUNK)
        except ConnectionResetError:
            part = b""
        parts.append(part)
        if not part or part.endswith(b"\n"):
            return b"".join(parts)


def _value(outcome: Outcome, data: bytes) -> Any:
    if isinstance(outcome, OOMKilled):
        raise OutOfMemory(-signal.SIGKILL, "call()", memory_limit=outcome.limit, memory_peak=outcome.peak)
    if not data.endswith(b"\n"):
        raise SandboxError(f"call() ended without an answer: {outcome}. Look at what it did last.")
    error, value = _understood(data)
    if error is not None:
        raise error
    return value


def _understood(data: bytes) -> tuple[BaseException | None, Any]:
    """Return the exception or the value; the answer may be anything, for what ran inside could write to the socket too."""
    try:
        answer = json.loads(data)
        return (values.decode_exception(answer["error"]), None) if "error" in answer else (None, values.decode(answer["value"]))
    except SandboxError:
        raise
    except Exception as error:  # noqa: BLE001 - a forged answer may have any fault
        raise SandboxError(
            f"call() was answered with what is no answer ({type(error).__name__}). Look at what wrote to its descriptors."
        ) from None

"""Fork this process into a container, and wait for the fork."""

from __future__ import annotations

import json
import os
import select
import signal
import threading
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_sandbox.client import session
from pytest_sandbox.container import processes
from pytest_sandbox.container.builder import fork_lock, fork_process
from pytest_sandbox.container.entrance import entrance_of, raise_for
from pytest_sandbox.container.files import read_regular
from pytest_sandbox.container.lifecycle import local_handles
from pytest_sandbox.container.processes import END_TIMEOUT
from pytest_sandbox.container.uid_check import check_uid
from pytest_sandbox.errors import ContainerStopped, SandboxError, SetupError, UnsupportedError
from pytest_sandbox.linux import (
    fork_hooks,
    huge_pages,
    loaded_libraries,
    namespaces,
    native_code,
    process,
)
from pytest_sandbox.linux.signals import Deferred
from pytest_sandbox.linux.syscall_batch import Failure, SyscallBatch
from pytest_sandbox.outcome import Exited, OOMKilled, Outcome, Signaled, TimedOut
from pytest_sandbox.runtime import users
from pytest_sandbox.runtime.protocol import close_all

if TYPE_CHECKING:
    from pytest_sandbox.container.handle import Handle
    from pytest_sandbox.linux.syscall_batch import Result
    from pytest_sandbox.runtime.join import JoinTarget
    from pytest_sandbox.runtime.users import User

__all__ = ["Child", "Forks", "fork_into", "forks"]

__tracebackhide__ = True  # pytest shows the line of the test; --full-trace shows all

_CHUNK = 1 << 16
#: Seconds for a process outside of the container, which nothing inside can stop, to fork into it.
_JOIN_TIMEOUT = 30.0
#: The exit status of a child that could not enter its container.
_NOT_JOINED = 125


class Child:
    """A fork of this process inside a container, as its parent sees it.

    ``pid`` is its PID outside; ``pidfd`` becomes readable (poll(2)) when it has ended.
    """

    def __init__(self, handle: Handle, pid: int, oom_kills: int) -> None:
        self.handle = handle
        self.pid = pid
        self.pidfd = _open_pidfd(pid)
        self._oom_kills = oom_kills
        self._outcome: Outcome | None = None
        self._code: int | None = None
        self._reaping = threading.Lock()
        handle.forks.add(self)

    def wait(self, timeout: float | None = None, *, everything: bool = True) -> Outcome:
        """Wait for the end, and return what it was.

        After ``timeout`` seconds (default: no limit), the fork and its descendants are killed, or
        with ``everything`` all processes in the container but init. Returns within
        :data:`END_TIMEOUT` seconds after that, whatever runs inside.
        """
        if self._outcome is not None:
            return self._outcome
        timed_out: TimedOut | None = None
        if not process.ended(self.pidfd, timeout):
            timed_out = TimedOut(timeout or 0, self._command_lines())
            self.kill(everything=everything)
        code = self._wait_status()
        self._outcome = timed_out or self._outcome_of(code)
        return self._outcome

    def set_oom_kills(self, count: int) -> None:
        """Count only OOM kills after these: a process that runs several tests has ended by SIGKILL
        in a later one.
        """
        self._oom_kills = count

    def _command_lines(self) -> tuple[str, ...]:
        """Return the command lines of what runs inside, for an error message."""
        try:
            return tuple(line for _pid, line in processes.list_processes(self.handle))
        except (OSError, SandboxError):
            return ()

    def reap(self) -> None:
        """Kill the fork and take its exit status: before that, its PID namespace does not end
        (pid_namespaces(7)).
        """
        if self._code is None:
            process.kill(self.pidfd, signal.SIGKILL)
            self._wait_status()

    def _wait_status(self) -> int:
        with self._reaping:
            if self._code is None:
                with self.handle.cgroup.unthrottled():
                    code = process.await_exit(self.pid, self.pidfd, END_TIMEOUT)
                with Deferred():
                    # None: the caller waits for all its children itself, or ignores SIGCHLD.
                    self._code = -signal.SIGKILL if code is None else code
                    # First: a child of another thread closes the descriptors of all forks, and this
                    # one's number may be that of a new socket of that thread.
                    self.handle.forks.discard(self)
                    os.close(self.pidfd)
            return self._code

    def _outcome_of(self, code: int) -> Outcome:
        if code >= 0:
            return Exited(code)
        if code == -signal.SIGKILL and self.handle.cgroup.oom_kills() > self._oom_kills:
            used = self.handle.figures()
            return OOMKilled(
                used.memory_limit, used.memory_peak or 0, self.handle.cgroup.page_cache_bytes()
            )
        return Signaled(-code)

    def kill(self, *, everything: bool = True) -> None:
        """Kill all processes in the container but init, or only the fork and its descendants."""
        with suppress(SandboxError, OSError):
            if everything:
                processes.kill_all(self.handle)
            else:
                processes.kill_tree(self.handle, self.pid)
        process.kill(self.pidfd, signal.SIGKILL)


def _open_pidfd(pid: int) -> int:
    """Return a pidfd; or, for a child that has ended and that the kernel has reaped since SIGCHLD
    is ignored, a descriptor that poll(2) also reports as readable.
    """
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


class Forks:
    """A counter of the forks of this process.

    After 16, 32, 64, ... forks the memory of the process is collected into huge pages, so that
    later forks copy smaller page tables; collecting takes as long as about ten forks.
    """

    def __init__(self) -> None:
        self._made = 0
        self._next = 16

    def count(self) -> None:
        """Count one more fork."""
        self._made += 1

    def gather(self) -> None:
        """Collect the memory into huge pages if it is time to: before a fork, or between tests."""
        if self._made >= self._next:
            self._next = 2 * self._made
            huge_pages.collapse()


forks = Forks()


def fork_into(handle: Handle, user: str | None, *, shielded: bool = False) -> Child | None:
    """Fork this process into a container: return None in the child, which is inside, and a
    :class:`Child` in this process.

    ``user`` is looked up in the container's files; None stays the invoking user. The child must end
    by :func:`os._exit`.

    ``shielded`` is for a container in which something may run already: at no time can that see the
    command line, memory, environment or descriptors of this process. It takes a second fork, and
    the child can neither be traced nor dump core.

    Raises :class:`UnsupportedError` if this process cannot join a PID namespace.
    """
    try:
        return _fork_into(handle, user, shielded=shielded, twice=shielded)
    except UnsupportedError:
        # This thread cannot return from the container's PID namespace. A second process, which
        # need not, can fork there.
        return _fork_into(handle, user, shielded=shielded, twice=True)


def _fork_into(handle: Handle, user: str | None, *, shielded: bool, twice: bool) -> Child | None:
    target = entrance_of(handle)
    forks.gather()
    forks.count()
    loaded_libraries.add_real_paths()
    oom_kills = handle.cgroup.oom_kills()
    confinement = target.confinement(None if user is None else _find_user(handle, user))
    twice = twice or target.builder_fd >= 0
    batch, clone = target.begin(shielded=shielded) if twice else (SyscallBatch(), None)
    if clone is None:
        # os.fork() cannot start the child in a cgroup, as clone3(2) can: the child joins it.
        replace(target, cgroup_files=handle.cgroup.join_paths()).add_join(batch)
    _add_arrival(handle, batch)
    batch.prepare()
    # An interrupt between the fork and the line that notes it would leave a child that nobody waits
    # for, or a second caller.
    batch.block_signals()
    pid = -1
    try:
        pid = (
            _fork_once(target, batch, confinement)
            if clone is None
            else _fork_twice(handle, batch, clone, shielded=shielded)
        )
        child = Child(handle, pid, oom_kills) if pid else None
    finally:
        if pid:
            batch.unblock_signals()
    if child is None:
        _finish_joining(handle, batch if clone is None else None, confinement)
    return child


def _find_user(handle: Handle, user: str) -> User:
    """Return a user by the files of the container.

    Raises :class:`UnsupportedError` for a UID that this user's containers do not have.
    """
    found = users.find(user, lambda path: read_regular(handle, path))
    check_uid(handle.launcher, handle.spec, found.uid)
    return found


def _add_arrival(handle: Handle, batch: SyscallBatch) -> None:
    """Append what the child does once it is inside: change its directory, close this library's
    descriptors, unblock signals.
    """
    settings = handle.settings
    directories = [settings.workdir] if settings.workdir else [os.getcwd(), handle.workdir]
    for directory in ["/", *reversed(directories)]:  # it stays in the last one that exists
        batch.add("change to the working directory", "chdir", os.fsencode(directory), go_on=True)
    launcher = session.running()
    fds = [] if launcher is None else launcher.descriptors()
    for one in {handle, *local_handles()}:
        fds += one.descriptors()
    for fd in fds:
        batch.add("close the library's descriptors", "close", fd, go_on=True)
    batch.restore_signals("unblock signals")


def _fork_once(target: JoinTarget, *in_child: SyscallBatch) -> int:
    """Fork with the container's PID namespace set for the children of this thread, and make the
    calls of ``in_child`` in the child.
    """
    own = namespaces.open_pid_for_children()
    before, after = map(namespaces.pid_for_children, (target.pidfd, own))
    pid = -1
    try:
        with fork_lock():
            pid = fork_hooks.fork_with(fork_process, before, after, in_child)
        _check_fork(pid, before, after)
    finally:
        with suppress(OSError):  # in the child, it may be closed: see _fork_twice()
            os.close(own)
    return pid


def _check_fork(pid: int, before: SyscallBatch, after: SyscallBatch) -> None:
    """Check that the child was made in the container's PID namespace, and that this thread has left
    it. Otherwise the child exits, and the error is raised in the parent.
    """
    try:
        before.check()
        if pid:
            after.check()
    except OSError as error:
        if not pid:
            os._exit(_NOT_JOINED)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        if isinstance(error, ProcessLookupError):
            raise ContainerStopped.ended() from error
        raise


def _fork_twice(handle: Handle, batch: SyscallBatch, clone: Result, *, shielded: bool) -> int:
    """Fork an intermediate process, which joins the namespaces and forks there; its child becomes a
    child of this process (CLONE_PARENT).

    Only a process with one thread can join a user namespace (setns(2)); this one may have more.
    """
    arguments = process.argument_memory() if shielded else (0, 0)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    intermediate = -1
    try:
        intermediate = fork_process()
        if intermediate:
            os.close(writer)
            writer = -1
            return _read_pid(handle, intermediate, reader)
        _run_intermediate(batch, clone, writer, arguments)
    finally:
        if intermediate:
            close_all([fd for fd in (reader, writer) if fd >= 0])
    for fd in (reader, writer):
        # The calls of _add_arrival() may have closed it: it can have the number of a descriptor
        # that another thread has closed since they were listed.
        with suppress(OSError):
            os.close(fd)
    return 0


def _run_intermediate(
    batch: SyscallBatch, clone: Result, writer: int, arguments: tuple[int, int]
) -> None:
    """Join the namespaces and fork: return in the child, and exit in this process."""
    status = 125
    try:
        native_code.clear_memory(*arguments)
        pid = batch.run_fork(clone)
        failure = batch.failure()
        if pid == 0 and failure is None:
            status = -1
            return
        answer = (
            {"pid": pid}
            if failure is None
            else {"step": failure.step, "errno": failure.errno, "call": failure.call}
        )
        os.write(writer, json.dumps(answer).encode() + b"\n")
    finally:
        if status >= 0:
            os._exit(status)


def _read_pid(handle: Handle, intermediate: int, reader: int) -> int:
    """Return the PID of the child that the intermediate process has forked into the container."""
    pidfd = os.pidfd_open(intermediate)
    try:
        answer = _read_line(reader, _JOIN_TIMEOUT)
        process.kill(pidfd, signal.SIGKILL)  # it has nothing more to do
        process.await_exit(intermediate, pidfd, END_TIMEOUT)
    finally:
        os.close(pidfd)
    if not answer:
        raise SetupError(
            "enter the container's PID namespace", "the process that forks there was killed"
        )
    told = json.loads(answer)
    if "pid" not in told:
        raise_for(handle, Failure(told["step"], told["errno"], told["call"]))
    return int(told["pid"])


def _read_line(reader: int, timeout: float) -> bytes:
    """Read up to the first newline, the end of the file, or the timeout in seconds."""
    deadline, data = time.monotonic() + timeout, b""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    while not data.endswith(b"\n") and poll.poll(process.milliseconds(deadline - time.monotonic())):
        part = os.read(reader, _CHUNK)
        if not part:
            break
        data += part
    return data


def _finish_joining(handle: Handle, batch: SyscallBatch | None, confinement: SyscallBatch) -> None:
    """Complete the way into the container, in the child; on an error, exit with status 125: a
    process that has joined only some namespaces must not run a test.

    ``batch`` is None if the child has to confine itself; otherwise the calls of both were made.
    """
    try:
        if batch is None:
            confinement.run()
        else:
            batch.check()
            confinement.check()
    except OSError as error:
        os.write(
            2,
            f"pytest-sandbox: the test could not enter its container: {error.strerror}\n".encode(),
        )
        os._exit(_NOT_JOINED)
    except KeyboardInterrupt:  # it came before the child had a session of its own
        os._exit(128 + signal.SIGINT)
    session.leave_in_fork()
    additions = handle.rootfs.additions
    if additions:
        os.environ.update(additions)

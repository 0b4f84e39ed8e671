"""``subprocess.Popen`` for a container: everything of the standard library's but how the child
starts.

The child is this process's own, as with :mod:`subprocess`, and a member of the container from its
first moment. Two private methods are replaced (``_execute_child``, ``_handle_exitstatus``) and one
is called (``_close_pipe_fds``): they have kept their shape from Python 3.11 to 3.14, and the tests
run on each.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, AnyStr

from pytest_sandbox.container.processes import END_TIMEOUT
from pytest_sandbox.errors import SettingsError, SetupError
from pytest_sandbox.linux import process, pty
from pytest_sandbox.linux import syscall as sc
from pytest_sandbox.linux.signals import Deferred
from pytest_sandbox.linux.spawn import Spawn
from pytest_sandbox.runtime import users
from pytest_sandbox.runtime.join import PYTHON_IGNORES, START_TIMEOUT
from pytest_sandbox.runtime.protocol import close_all

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_sandbox.container.container import Container
    from pytest_sandbox.linux.spawn import Status
    from pytest_sandbox.linux.syscall_batch import SyscallBatch
    from pytest_sandbox.runtime.join import Entrance

__all__ = ["Popen", "with_pipes"]

__tracebackhide__ = (
    True  # pytest shows the line of the test that asked, not ours; --full-trace shows all
)

_CHUNK = 1 << 16
_LOOK_AGAIN = 100  # milliseconds between two looks at whether anybody still waits
_PIPE_AT_MOST = 1 << 20  # /proc/sys/fs/pipe-max-size, by default
_WORKDIR = "change to the working directory"
_NOT_EXECUTED = (
    "Other processes in the container stop it, or leave it no CPU time: end them, or raise cpus=."
)


class Popen(subprocess.Popen[AnyStr]):
    """A process in a container; see :class:`subprocess.Popen`.

    ``pid`` is its number outside, where it is a child of the calling process. ``user`` (also
    ``"USER:GROUP"``), ``group`` and ``extra_groups`` are read from the container's own files. It is
    always the leader of a session of its own. Descriptors of ``pass_fds`` are open in it under the
    same numbers, as with :mod:`subprocess`: what they refer to is not part of the container.

    ``start_timeout`` are the seconds that it may take until the program is executed (60 by
    default); over them it is killed, and :class:`subprocess.TimeoutExpired` raised, or without one
    :class:`SetupError`.
    """

    def __init__(
        self,
        container: Container,
        args: Any,
        *,
        user: str | int | None = None,
        group: str | int | None = None,
        extra_groups: Iterable[str | int] | None = None,
        tty: bool = False,
        start_timeout: float | None = None,
        **kwargs: Any,
    ) -> None:
        for key in ("preexec_fn", "process_group", "startupinfo", "creationflags"):
            if kwargs.get(key):
                raise SettingsError(
                    key, kwargs[key], "nothing: it has no meaning for a process in a container"
                )
        self._container = container
        self._user = None if user is None else str(user)
        self._group = None if group is None else str(group)
        self._extra_groups = None if extra_groups is None else [str(one) for one in extra_groups]
        self._tty = tty
        self._start_timeout = start_timeout
        self._pumps: list[_Pump] = []
        self._pidfd = -1
        super().__init__(args, **kwargs)

    def _execute_child(
        self,
        args: Any,
        executable: Any,
        _preexec: Any,
        close_fds: Any,
        pass_fds: Any,
        cwd: Any,
        env: Any,
        *more: Any,
    ) -> None:
        shell, pipes = more[2], more[3:9]
        restore_signals, _gid, _gids, _uid, umask, *_rest = more[9:]
        opened: list[int] = []
        try:
            with Deferred():
                standards: list[int] = self._standards((pipes[0], pipes[3], pipes[5]), opened)
            env, workdir, user = self._container.surroundings(env=env, cwd=cwd, user=self._user)
            who = self._who(user, env)
            words: list[str] = _words(args, executable, shell=shell)
            commands: list[str] = _candidates(
                words[0] if executable is None else os.fsdecode(executable), env
            )
            passed: set[int] = _passed(pass_fds, close_fds=close_fds)
            entrance: Entrance = self._container.entrance()
            batch, clone = entrance.begin()
            _add_streams(batch, standards, tty=self._tty)
            if (
                self._tty and who is not None
            ):  # as login(1) does: else the user may not open its own terminal by name
                batch.add("own the terminal", "fchown", 0, who.uid, -1)
            batch.add(_WORKDIR, "chdir", _without_null(workdir))
            if umask >= 0:
                batch.add("set umask", "umask", umask)
            entrance.add_lock_down(batch, who)
            batch.add("close descriptors", "close_range", 3, sc.MOST_FDS, sc.CLOSE_RANGE_CLOEXEC)
            for fd in passed:
                batch.add("pass descriptors", "fcntl", fd, fcntl.F_SETFD, 0)
            batch.restore_signals("restore signals", PYTHON_IGNORES if restore_signals else ())
            timeout = START_TIMEOUT if self._start_timeout is None else self._start_timeout
            kept = {*standards, *passed, *entrance.descriptors}
            with Spawn(batch, clone, kept, self._container.cgroup.unthrottled) as spawn:
                spawn.add_execute(
                    [*map(os.fsencode, commands)], [*map(os.fsencode, words)], _assignments(env)
                )
                status = spawn.run(time.monotonic() + timeout, self._adopt)
            self._take(
                status,
                args,
                workdir if cwd is None else cwd,
                executable or (words[0] if shell else _first(args)),
            )
        finally:
            close_all(opened)
            self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]

    def _adopt(self, pid: int) -> None:
        self.pid = pid
        self._child_created = True
        self._container.commands.add(self)

    def _take(self, status: Status, args: Any, workdir: Any, command: Any) -> None:
        """Raise what :mod:`subprocess` raises where the program could not be executed."""
        if status.executed:
            return
        if status.late:
            if self._start_timeout is not None:
                raise subprocess.TimeoutExpired(args, self._start_timeout)
            raise SetupError(
                "execute",
                f"the program was not executed within {START_TIMEOUT:.0f} s",
                _NOT_EXECUTED,
            )
        failure = next((one for one in status.failures if not one.may_be), None)
        if failure is None and not status.failures:
            raise SetupError("execute", "the spawn helper was killed")
        if failure is None:
            # As execvp(3): what was there and could not be executed says more than what was not
            # there.
            errors = [one.errno for one in status.failures]
            number = next(
                (error for error in errors if error not in {errno.ENOENT, errno.ENOTDIR}),
                errors[-1],
            )
            raise OSError(number, os.strerror(number), command)
        if failure.step == _WORKDIR:
            raise OSError(failure.errno, os.strerror(failure.errno), workdir)
        self._container.raise_for(failure)

    def _who(self, user: str | None, env: dict[str, str]) -> users.User | None:
        """Find the user, who brings his home with him, and the groups; None where all stays as it
        is.
        """
        if (user, self._group, self._extra_groups) == (None, None, None):
            return None
        read = self._container.read_plain
        if user is None:
            found = users.User(os.geteuid(), os.getegid(), tuple(os.getgroups()), "")
        else:
            found = users.find(user, read)
            env.setdefault("HOME", found.home)
        if self._group is not None:
            found = replace(found, gid=users.find_group(self._group, read))
        if self._extra_groups is not None:
            found = replace(
                found, groups=tuple(users.find_group(one, read) for one in self._extra_groups)
            )
        return found

    def _standards(self, given: tuple[int, int, int], opened: list[int]) -> list[int]:
        """Return the child's stdin, stdout and stderr for what was given: -1 is the caller's own,
        or /dev/null where that is closed.

        A regular file goes through a pipe, for by /proc/self/fd it could be opened again with other
        rights; so does the caller's own stdout or stderr that is a pipe or a socket, for O_NONBLOCK
        that is set on it holds for the caller too (fcntl(2)). One file, one pipe, so that what is
        written keeps its order. A terminal of the caller's is opened again.
        """
        fds = [standard if fd == -1 else fd for standard, fd in enumerate(given)]
        found = [_status_of(fd, inherited=given[standard] == -1) for standard, fd in enumerate(fds)]
        pipes: dict[tuple[int, int], int] = {}
        for standard, status in enumerate(found):
            if status is None:
                fds[standard] = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
                opened.append(fds[standard])
            elif given[standard] == -1 and os.isatty(fds[standard]):
                fds[standard] = _opened_again(fds[standard])
                opened.append(fds[standard])
            elif stat.S_ISREG(status.st_mode) or (
                given[standard] == -1 and standard and _is_stream(status.st_mode)
            ):
                key = (status.st_ino if standard else -1, status.st_dev)
                if key not in pipes:
                    pipes[key] = self._pump(fds[standard], reading=standard == 0)
                    opened.append(pipes[key])
                fds[standard] = pipes[key]
        return fds

    def _pump(self, fd: int, *, reading: bool) -> int:
        pump = _Pump(fd, reading=reading)
        if not reading:
            self._pumps.append(pump)
        return pump.child_end

    @property
    def inside_pid(self) -> int:
        """Its number inside; 0 when it has ended and was reaped."""
        return process.namespace_pid(self.pid)

    def fileno(self) -> int:
        """Return a descriptor that poll(2) reports when the process has ended; -1 once :meth:`poll`
        has told so.
        """
        if self._pidfd < 0 and self.returncode is None:
            self._pidfd = os.pidfd_open(self.pid)
        return self._pidfd

    def signal_group(self, sig: int) -> None:
        """Send a signal to the process group that the process leads, as a terminal does for a
        key.
        """
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, sig)

    def kill_tree(self) -> None:
        """Kill the process and all below it."""
        if self.poll() is None:
            self._container.kill_tree(self.pid)

    # subprocess calls it
    def _communicate(self, input: Any, endtime: Any, orig_timeout: Any) -> Any:  # noqa: A002
        """Do what :mod:`subprocess` does, without waiting in a read: the command can take back what
        it has written.
        """
        for pipe in (self.stdout, self.stderr):
            if pipe is not None and not pipe.closed:
                os.set_blocking(pipe.fileno(), False)
        while True:
            try:
                return super()._communicate(input, endtime, orig_timeout)  # type: ignore[misc]
            except BlockingIOError:
                self._communication_started = True  # what was read until now is kept

    def end(self) -> None:
        """Kill the process and all below it, and take its exit status."""
        self.kill_tree()
        self.await_end()

    def await_end(self) -> None:
        """Take the exit status of a process that was killed; one that the kernel does not let end
        is left to :meth:`Container.close`.
        """
        with suppress(subprocess.TimeoutExpired):
            self.wait(END_TIMEOUT)

    def close_pipes(self) -> None:
        """Close this process's ends of the pipes."""
        for pipe in (self.stdin, self.stdout, self.stderr):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()

    def _handle_exitstatus(self, *args: Any, **kwargs: Any) -> None:
        """Take the exit status; by then everything that the command wrote is in its files."""
        super()._handle_exitstatus(*args, **kwargs)  # type: ignore[misc]
        if self.returncode is not None:
            self._container.commands.discard(self)
            close_all([self._pidfd] if self._pidfd >= 0 else [])
            self._pidfd = -1
            patience = None if self._start_timeout is None else END_TIMEOUT / 2
            errors = [
                error
                for error in [pump.drain(patience) for pump in self._pumps]
                if error is not None
            ]
            if errors:  # a full disk, where the command itself would have met it
                raise errors[0]


def _add_streams(batch: SyscallBatch, standards: list[int], *, tty: bool) -> None:
    """Append what makes three descriptors the standard streams, wherever they lie now."""
    step = "set streams"
    high = [batch.add(step, "fcntl", fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in standards]
    for standard, fd in enumerate(high):
        batch.add(step, "dup3", fd, standard, 0)
    if tty:
        batch.add(step, "ioctl", 0, pty.TIOCSCTTY, 0)


def _is_stream(mode: int) -> bool:
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _opened_again(terminal_fd: int) -> int:
    """Return a terminal with an open file description of its own, or the same where it has no name
    here.
    """
    try:
        return os.open(process.path_of(terminal_fd), os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return os.dup(terminal_fd)


def _passed(pass_fds: Iterable[int], *, close_fds: bool) -> set[int]:
    """Return the descriptors past stderr that the command has: those that the caller names, or all
    inheritable ones.
    """
    passed = {int(fd) for fd in pass_fds}
    if not close_fds:
        passed |= process.inheritable_descriptors()
    return {fd for fd in passed if fd > 2}


def _candidates(command: str, env: dict[str, str]) -> list[str]:
    """Return the paths at which a command is looked for, as execvp(3) does, in the command's own
    environment.
    """
    if "/" in command:
        return [command]
    return [
        os.path.join(directory, command)
        for directory in env.get("PATH", os.defpath).split(os.pathsep)
    ]


def _assignments(env: dict[str, str]) -> list[bytes]:
    """Return an environment as execve(2) takes it, with the errors of :mod:`subprocess`."""
    found = []
    for name, value in env.items():
        if "=" in name:
            raise ValueError("illegal environment variable name")
        if "\0" in name or "\0" in value:
            raise ValueError("embedded null byte")
        found.append(os.fsencode(f"{name}={value}"))
    return found


def _without_null(path: str) -> bytes:
    if "\0" in path:
        raise ValueError("embedded null byte")
    return os.fsencode(path)


def _status_of(fd: int, *, inherited: bool) -> os.stat_result | None:
    """Return what a descriptor is; None for an inherited one that is closed, or that an exec would
    close, as others that took a free place.
    """
    if not inherited:
        return os.fstat(fd)
    try:
        return None if fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC else os.fstat(fd)
    except OSError:
        return None


def with_pipes(keywords: dict[str, Any], *, input: Any, capture_output: bool) -> dict[str, Any]:  # noqa: A002
    """Do what :func:`subprocess.run` does with ``input`` and ``capture_output``, with its
    errors.
    """
    if input is not None:
        if keywords.get("stdin") is not None:
            raise ValueError("stdin and input arguments may not both be used.")
        keywords["stdin"] = subprocess.PIPE
    if capture_output:
        if keywords.get("stdout") is not None or keywords.get("stderr") is not None:
            raise ValueError("stdout and stderr arguments may not be used with capture_output.")
        keywords["stdout"] = keywords["stderr"] = subprocess.PIPE
    return keywords


def _words(args: Any, executable: Any, *, shell: bool) -> list[str]:
    words = [args] if isinstance(args, (str, bytes, os.PathLike)) else list(args)
    if shell:
        words = [executable or "/bin/sh", "-c", *words]
    if not words:
        raise SettingsError("args", args, 'a program and its arguments, such as ["ls", "-l"]')
    found = [os.fsdecode(word) for word in words]
    if any("\0" in word for word in found):
        raise ValueError("embedded null byte")
    return found


def _first(args: Any) -> Any:
    # any sequence will do
    return args if isinstance(args, (str, bytes, os.PathLike)) else list(args)[0]  # noqa: RUF015


class _Pump:
    """A pipe between a container and a regular file outside, moved by a thread; the file's own
    position stays where its owner expects it.
    """

    def __init__(self, fd: int, *, reading: bool) -> None:
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        self.child_end = read_end if reading else write_end
        self._ours = write_end if reading else read_end
        os.set_blocking(self._ours, reading)  # before any thread may drain it
        self._file = os.dup(fd)
        # What poll(2) says can be written to a pipe or a socket without waiting.
        self._step = _CHUNK if stat.S_ISREG(os.fstat(fd).st_mode) else select.PIPE_BUF
        self._deadline: float | None = None
        self._moving = threading.Lock()
        self._done = False
        self._error: OSError | None = None
        target = self._feed if reading else self._collect
        threading.Thread(target=target, daemon=True, name="pytest-sandbox-pump").start()

    def _feed(self) -> None:
        with suppress(BrokenPipeError):
            while chunk := os.read(self._file, _CHUNK):
                view = memoryview(chunk)
                while view:
                    view = view[os.write(self._ours, view) :]
        close_all([self._ours, self._file])

    def _collect(self) -> None:
        poll = select.poll()
        poll.register(self._ours, select.POLLIN)
        while not self._done:
            poll.poll()
            with self._moving:
                self._move()
        with (
            self._moving
        ):  # nobody else closes: the number could be another file's while this waits for it
            close_all([self._ours, self._file])

    def _move(self) -> None:
        """Write what is there to the file, but no more than a pipe holds, for a writer may never
        stop.
        """
        try:
            for _ in range(_PIPE_AT_MOST // _CHUNK):
                if self._done or not self._move_chunk():
                    return
        except OSError as error:
            self._error, self._done = error, True

    def _move_chunk(self) -> bool:
        try:
            chunk = os.read(self._ours, _CHUNK)
        except BlockingIOError:
            return False
        self._done = not chunk
        view = memoryview(chunk)
        while view:
            if not self._may_write():
                self._done = True
                return False
            with suppress(BlockingIOError):
                view = view[os.write(self._file, view[: self._step]) :]
        return True

    def _may_write(self) -> bool:
        """Wait until the file takes more; False once nobody waits for that any more."""
        poll = select.poll()
        poll.register(self._file, select.POLLOUT)
        while not poll.poll(_LOOK_AGAIN):
            if self._deadline is not None and time.monotonic() > self._deadline:
                return False
        return True

    def drain(self, timeout: float | None) -> OSError | None:
        """Return when all that was written before the call is in the file; with the error that
        stopped it.

        Over ``timeout`` seconds the rest is given up: nobody reads what the file leads to.
        """
        if timeout is not None:
            self._deadline = time.monotonic() + timeout
        if not self._moving.acquire(timeout=-1 if timeout is None else timeout + 1):
            return None
        try:
            self._move()
            error, self._error = self._error, None
            return error
        finally:
            self._moving.release()

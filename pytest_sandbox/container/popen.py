"""``subprocess.Popen`` for a container: everything of the standard library's but who starts, signals and awaits the process.

Four of its private methods are replaced (``_execute_child``, ``_internal_poll``, ``_wait``, ``_close_pipe_fds`` is called): they have kept their
shape from Python 3.11 to 3.14, and the tests run on each.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import stat
import subprocess
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pytest_sandbox.channel import Channel, close_all
from pytest_sandbox.errors import ContainerStopped, SettingsError
from pytest_sandbox.linux import process

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_sandbox.container import Container

__all__ = ["Popen"]

__tracebackhide__ = True  # pytest shows the line of the test that asked, not ours; --full-trace shows all

_CHUNK = 1 << 16
#: What init's own subprocess raises beside OSError.
_ERRORS: dict[str, type[Exception]] = {"ValueError": ValueError, "TypeError": TypeError, "OverflowError": OverflowError}


class Popen(subprocess.Popen[Any]):
    """A process in a container; see :class:`subprocess.Popen`.

    ``pid`` is its number outside. ``user`` (also ``"USER:GROUP"``), ``group`` and ``extra_groups`` are read from the container's own
    files. It is always the leader of a session of its own.
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
        **kwargs: Any,
    ) -> None:
        for key in ("preexec_fn", "pass_fds", "process_group", "startupinfo", "creationflags"):
            if kwargs.get(key):
                raise SettingsError(key, kwargs[key], "nothing: it has no meaning for a process in a container")
        self._container = container
        self._user = None if user is None else str(user)
        self._group = None if group is None else str(group)
        self._extra_groups = None if extra_groups is None else [str(one) for one in extra_groups]
        self._tty = tty
        self._status: Channel | None = None
        self._receiving = threading.Lock()
        self._pumps: list[_Pump] = []
        self._pidfd = -1
        self.inside_pid = 0
        super().__init__(args, **kwargs)

    def _execute_child(self, args: Any, executable: Any, _preexec: Any, _close: Any, _pass: Any, cwd: Any, env: Any, *more: Any) -> None:
        shell, pipes = more[2], more[3:9]
        restore_signals, _gid, _gids, _uid, umask, *_rest = more[9:]
        p2cread, _p2cwrite, _c2pread, c2pwrite, _errread, errwrite = pipes
        words = _words(args, executable, shell=shell)
        message = {
            "op": "spawn",
            "args": words,
            "executable": None if executable is None else os.fsdecode(executable),
            "umask": umask,
            "restore_signals": restore_signals,
            "group": self._group,
            "extra_groups": self._extra_groups,
            "tty": self._tty,
            **self._container.surroundings(env=env, cwd=cwd, user=self._user),
        }
        opened: list[int] = []
        self._status, theirs = None, None
        try:
            standards = self._standards((p2cread, c2pwrite, errwrite), opened)
            self._status, theirs = Channel.pair()
            self._container.order(message, [theirs.fileno(), *standards])
            theirs.close()
            self._started(words, message["cwd"], cwd, executable or (words[0] if shell else _first(args)))
        except BaseException:
            for end in filter(None, (self._status, theirs)):
                end.close()
            raise
        finally:
            close_all(opened)
            self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]

    def _standards(self, given: tuple[int, int, int], opened: list[int]) -> list[int]:
        """Return the child's stdin, stdout and stderr for what was given: -1 is the caller's own, or /dev/null where that is closed.

        A regular file goes through a pipe, for by /proc/self/fd it could be opened anew with other rights; one file, one pipe, so that what
        is written keeps its order.
        """
        fds = [standard if fd == -1 else fd for standard, fd in enumerate(given)]
        found = [_status_of(fd, inherited=given[standard] == -1) for standard, fd in enumerate(fds)]
        pipes: dict[tuple[int, int], int] = {}
        for standard, status in enumerate(found):
            if status is None:
                fds[standard] = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
                opened.append(fds[standard])
            elif stat.S_ISREG(status.st_mode):
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

    def _started(self, words: list[str], workdir: str, cwd: Any, command: Any) -> None:
        assert self._status is not None
        try:
            answer, fds = self._status.receive()
        except EOFError:
            raise ContainerStopped(f"the container ended before it could start {words[0]!r}. Start a new one.") from None
        if answer["op"] == "failed":
            raise _error(answer, workdir, cwd, command)
        self._child_created = True
        self._pidfd = fds[0]
        self.inside_pid = answer["pid"]
        outside = process.pid_of(self._pidfd)
        self.pid = outside if outside > 0 else self.inside_pid

    def _internal_poll(self, _deadstate: Any = None, *_args: Any) -> int | None:
        if self.returncode is None:
            self._receive(0)
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        if self.returncode is None and not self._receive(timeout):
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self.returncode

    def _receive(self, timeout: float | None) -> bool:
        """Wait for the exit status; False where it has not come in time."""
        end = None if timeout is None else time.monotonic() + timeout
        if not self._receiving.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
            return False
        try:
            if self.returncode is not None:
                return True
            assert self._status is not None
            poll = select.poll()
            poll.register(self._status.fileno(), select.POLLIN)
            if not poll.poll(None if end is None else max(0.0, end - time.monotonic()) * 1000):
                return False
            self._finish()
            return True
        finally:
            self._receiving.release()

    def _finish(self) -> None:
        assert self._status is not None
        try:
            answer, _fds = self._status.receive()
            status = answer["status"]
        except EOFError:  # its init is gone, and with it everything inside
            status = signal.SIGKILL
        self._status.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        for pump in self._pumps:
            pump.drain()
        self.returncode = os.waitstatus_to_exitcode(status)

    def fileno(self) -> int:
        """Return the descriptor that poll(2) reports when the process has ended; -1 once :meth:`poll` has told so."""
        return self._status.fileno() if self._status is not None else -1

    def send_signal(self, sig: int) -> None:
        """Send a signal to the process; nothing happens where it has ended."""
        self.poll()
        if self.returncode is None:
            process.kill(self._pidfd, sig)

    def signal_group(self, sig: int) -> None:
        """Send a signal to the process group that the process leads, as a terminal does for a key."""
        self.poll()
        if self.returncode is None:
            self._container.ask({"op": "signal", "group": self.inside_pid, "signal": int(sig)})

    def kill_tree(self) -> None:
        """Kill the process and all below it."""
        self.poll()
        if self.returncode is None:
            self._container.ask({"op": "signal", "pid": self.inside_pid, "signal": int(signal.SIGKILL)})

    def __del__(self, *args: Any, **kwargs: Any) -> None:
        if getattr(self, "_pidfd", -1) >= 0 and self.returncode is not None:
            os.close(self._pidfd)
        super().__del__(*args, **kwargs)


def _status_of(fd: int, *, inherited: bool) -> os.stat_result | None:
    """Return what a descriptor is; None for an inherited one that is closed, or that an exec would close, as others that took a free place."""
    if not inherited:
        return os.fstat(fd)
    try:
        return None if fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC else os.fstat(fd)
    except OSError:
        return None


def _words(args: Any, executable: Any, *, shell: bool) -> list[str]:
    words = [args] if isinstance(args, (str, bytes, os.PathLike)) else list(args)
    if shell:
        words = [executable or "/bin/sh", "-c", *words]
    if not words:
        raise IndexError("list index out of range")  # what subprocess says
    found = [os.fsdecode(word) for word in words]
    if any("\0" in word for word in found):
        raise ValueError("embedded null byte")
    return found


def _first(args: Any) -> Any:
    return args if isinstance(args, (str, bytes, os.PathLike)) else list(args)[0]  # noqa: RUF015 - any sequence will do


def _error(answer: dict[str, Any], workdir: str, cwd: Any, command: Any) -> Exception:
    """Return what :mod:`subprocess` raises: the file it names is the folder or the command, as the caller wrote it."""
    if answer["errno"] is None:
        if answer["kind"] == "LookupError":
            key, value, accepted = answer["reason"].split("\n")
            return SettingsError(key, value, accepted)
        return _ERRORS.get(answer["kind"], RuntimeError)(answer["reason"])
    if answer.get("filename") == workdir:
        return OSError(answer["errno"], answer["reason"], workdir if cwd is None else cwd)
    return OSError(answer["errno"], answer["reason"], command)


class _Pump:
    """A pipe between a container and a regular file outside, moved by a thread; the file's own position stays where its owner expects it."""

    def __init__(self, fd: int, *, reading: bool) -> None:
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        self.child_end = read_end if reading else write_end
        self._ours = write_end if reading else read_end
        self._file = os.dup(fd)
        self._moving = threading.Lock()
        self._done = False
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
        fcntl.fcntl(self._ours, fcntl.F_SETFL, os.O_NONBLOCK)
        poll = select.poll()
        poll.register(self._ours, select.POLLIN)
        while poll.poll():
            with self._moving:
                if not self._move():
                    break
        with self._moving:
            self._done = True
            close_all([self._ours, self._file])

    def _move(self) -> bool:
        """Write what is there to the file; False at the end of the pipe."""
        while True:
            try:
                chunk = os.read(self._ours, _CHUNK)
            except BlockingIOError:
                return True
            if not chunk:
                return False
            view = memoryview(chunk)
            while view:
                view = view[os.write(self._file, view) :]

    def drain(self) -> None:
        """Return when all that was written before the call is in the file."""
        with self._moving:
            if not self._done:
                self._move()

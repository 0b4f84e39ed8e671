"""``subprocess.Popen`` for a container: the standard library's, except how the child starts.

The command is a child of this process, as with :mod:`subprocess`, and is in the container from its
first instruction. Private methods of :class:`subprocess.Popen` are replaced (``_execute_child``,
``_communicate``, ``_handle_exitstatus``) and called (``_close_pipe_fds``): they have the same
arguments from Python 3.11 to 3.14, and the tests run on each.
"""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, AnyStr

from pytest_sandbox.container.entrance import entrance_of, raise_for
from pytest_sandbox.container.files import read_regular
from pytest_sandbox.container.processes import END_TIMEOUT, kill_tree
from pytest_sandbox.container.streams import add_streams, child_streams
from pytest_sandbox.errors import SettingsError, SetupError
from pytest_sandbox.linux import process
from pytest_sandbox.linux import syscall as sc
from pytest_sandbox.linux.signals import Deferred
from pytest_sandbox.linux.spawn import Spawn
from pytest_sandbox.linux.temporary_descriptors import TemporaryDescriptors
from pytest_sandbox.runtime import users
from pytest_sandbox.runtime.join import PYTHON_IGNORES, START_TIMEOUT
from pytest_sandbox.runtime.protocol import close_all

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_sandbox.container.handle import Handle
    from pytest_sandbox.container.kept_log import KeptLog
    from pytest_sandbox.container.pump import Pump
    from pytest_sandbox.linux.spawn import Status
    from pytest_sandbox.linux.syscall_batch import SyscallBatch
    from pytest_sandbox.runtime.join import JoinTarget

__all__ = ["Popen", "with_pipes"]

__tracebackhide__ = True  # pytest shows the line of the test; --full-trace shows all

_WORKDIR = "change to the working directory"
_NOT_EXECUTED = (
    "Other processes in the container stop it, or leave it no CPU time: end them, or raise cpus=."
)


class Popen(subprocess.Popen[AnyStr]):
    """A process in a container; see :class:`subprocess.Popen` for its arguments and methods.

    ``pid`` is its PID outside, where it is a child of the calling process. ``user`` (also
    ``"USER:GROUP"``), ``group`` and ``extra_groups`` are looked up in the container's files. The
    process is always the leader of a session of its own. Descriptors in ``pass_fds`` are open in it
    under the same numbers, as with :mod:`subprocess`: the files behind them are outside of the
    container.

    ``tty`` makes stdin, which is a terminal then, the controlling terminal. ``start_timeout`` is
    the time in seconds until the program must be executed (default: 60); after it the process is
    killed, and :class:`subprocess.TimeoutExpired` is raised, or by default :class:`SetupError`.
    """

    def __init__(
        self,
        handle: Handle,
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
        self._handle = handle.running()
        self._user = None if user is None else str(user)
        self._group = None if group is None else str(group)
        self._extra_groups = None if extra_groups is None else [str(one) for one in extra_groups]
        self._tty = tty
        self._start_timeout = start_timeout
        self._pumps: list[Pump] = []
        self._pidfd = -1
        #: The output, if it is kept.
        self.kept_log: KeptLog | None = None
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
        opened: TemporaryDescriptors | None = None
        try:
            with Deferred():
                opened = TemporaryDescriptors()
                streams: list[int] = child_streams(
                    (pipes[0], pipes[3], pipes[5]), opened.fds, self._pumps
                )
            env, workdir, name = self._env_workdir_user(env, cwd)
            user = self._find_user(name, env)
            argv: list[str] = _argv(args, executable, shell=shell)
            paths: list[str] = _search(
                argv[0] if executable is None else os.fsdecode(executable), env
            )
            passed: set[int] = _passed_descriptors(pass_fds, close_fds=close_fds)
            entrance: JoinTarget = entrance_of(self._handle)
            batch, clone = entrance.begin()
            self._add_process_state(batch, streams, user, workdir, umask)
            entrance.add_confinement(batch, user)
            _add_descriptors(batch, passed)
            batch.restore_signals("restore signals", PYTHON_IGNORES if restore_signals else ())
            timeout = START_TIMEOUT if self._start_timeout is None else self._start_timeout
            fds = {*streams, *passed, *entrance.descriptors}
            with Spawn(batch, clone, fds, self._handle.cgroup.unthrottled) as spawn:
                spawn.add_execute(
                    [*map(os.fsencode, paths)], [*map(os.fsencode, argv)], _assignments(env)
                )
                status = spawn.run(time.monotonic() + timeout, self._note_started)
            self._check_executed(
                status,
                args,
                workdir if cwd is None else cwd,
                executable or (argv[0] if shell else _first(args)),
            )
        finally:
            if opened is not None:
                opened.close()
            self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]

    def _env_workdir_user(self, env: Any, cwd: Any) -> tuple[dict[str, str], str, str | None]:
        """Return the environment, the working directory and the user of the command: its own
        arguments, or those of the settings and the image.
        """
        handle = self._handle
        return (
            {os.fsdecode(name): os.fsdecode(value) for name, value in env.items()}
            if env is not None
            else handle.rootfs.environment(handle.hostname),
            handle.workdir if cwd is None else os.path.join(handle.workdir, os.fsdecode(cwd)),
            self._user if self._user is not None else handle.rootfs.user,
        )

    def _find_user(self, user: str | None, env: dict[str, str]) -> users.User | None:
        """Return the UID and GIDs of the command, None to keep this process's; set HOME if the
        environment lacks it.
        """
        if (user, self._group, self._extra_groups) == (None, None, None):
            return None

        def read(path: str) -> str:
            return read_regular(self._handle, path)

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

    def _add_process_state(
        self,
        batch: SyscallBatch,
        streams: list[int],
        user: users.User | None,
        workdir: str,
        umask: int,
    ) -> None:
        """Append what sets the standard streams, the terminal, the directory and the umask."""
        add_streams(batch, streams, tty=self._tty)
        if self._tty and user is not None:
            # As login(1) does; else the user may not open the terminal by its name.
            batch.add("own the terminal", "fchown", 0, user.uid, -1)
        batch.add(_WORKDIR, "chdir", _without_null(workdir))
        if umask >= 0:
            batch.add("set umask", "umask", umask)

    def _note_started(self, pid: int) -> None:
        self.pid = pid
        self._child_created = True
        self._handle.commands.add(self)

    def _check_executed(self, status: Status, args: Any, workdir: Any, command: Any) -> None:
        """Raise what :mod:`subprocess` raises if the program could not be executed."""
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
        failure = next((one for one in status.failures if not one.is_allowed), None)
        if failure is None and not status.failures:
            raise SetupError("execute", "the spawn helper was killed")
        if failure is None:
            # As execvp(3): a file that exists and cannot be executed explains more than one that
            # does not exist.
            errors = [one.errno for one in status.failures]
            number = next(
                (error for error in errors if error not in {errno.ENOENT, errno.ENOTDIR}),
                errors[-1],
            )
            raise OSError(number, os.strerror(number), command)
        if failure.step == _WORKDIR:
            raise OSError(failure.errno, os.strerror(failure.errno), workdir)
        raise_for(self._handle, failure)

    @property
    def inside_pid(self) -> int:
        """The PID inside; 0 when the process has ended and was reaped."""
        return process.namespace_pid(self.pid)

    def fileno(self) -> int:
        """Return a descriptor that becomes readable (poll(2)) when the process has ended; -1 once
        :meth:`poll` has returned the exit status.
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
        """Kill the process and its descendants."""
        if self.poll() is None:
            kill_tree(self._handle.running(), self.pid)

    # subprocess calls it
    def _communicate(self, input: Any, endtime: Any, orig_timeout: Any) -> Any:  # noqa: A002
        """Do what :mod:`subprocess` does, without waiting in a read: the command can read back what
        it has written to a pipe, so that poll(2) was right and read(2) still waits.
        """
        for pipe in (self.stdout, self.stderr):
            if pipe is not None and not pipe.closed:
                os.set_blocking(pipe.fileno(), False)
        while True:
            try:
                return super()._communicate(input, endtime, orig_timeout)  # type: ignore[misc]
            except BlockingIOError:
                self._communication_started = True  # or the next call would drop what was read

    def end(self) -> None:
        """Kill the process and its descendants, and take its exit status."""
        self.kill_tree()
        self.await_end()

    def await_end(self) -> None:
        """Take the exit status of a process that was killed, if it ends within
        :data:`END_TIMEOUT` seconds; else :meth:`Container.close` does.
        """
        with suppress(subprocess.TimeoutExpired):
            self.wait(END_TIMEOUT)

    def close_pipes(self) -> None:
        """Close the pipes to the command on this side."""
        for pipe in (self.stdin, self.stdout, self.stderr):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()

    def _handle_exitstatus(self, *args: Any, **kwargs: Any) -> None:
        """Take the exit status, once everything that the command wrote is in its files."""
        super()._handle_exitstatus(*args, **kwargs)  # type: ignore[misc]
        if self.returncode is not None:
            self._handle.commands.discard(self)
            close_all([self._pidfd] if self._pidfd >= 0 else [])
            self._pidfd = -1
            timeout = None if self._start_timeout is None else END_TIMEOUT / 2
            results = [pump.drain(timeout) for pump in self._pumps]
            errors = [error for error in results if error is not None]
            if errors:  # such as a full disk, which the command itself would have met
                raise errors[0]


def _add_descriptors(batch: SyscallBatch, passed: set[int]) -> None:
    """Append what closes, at the execution, all descriptors from 3 on but the passed ones."""
    batch.add("close descriptors", "close_range", 3, sc.MAX_FD, sc.CLOSE_RANGE_CLOEXEC)
    for fd in passed:
        batch.add("pass descriptors", "fcntl", fd, fcntl.F_SETFD, 0)


def _passed_descriptors(pass_fds: Iterable[int], *, close_fds: bool) -> set[int]:
    """Return the descriptors after stderr that the command gets: those that the caller names, and
    without ``close_fds`` all inheritable ones.
    """
    passed = {int(fd) for fd in pass_fds}
    if not close_fds:
        passed |= process.inheritable_descriptors()
    return {fd for fd in passed if fd > 2}


def _search(command: str, env: dict[str, str]) -> list[str]:
    """Return the paths at which execvp(3) looks for a command, with PATH of its environment."""
    if "/" in command:
        return [command]
    return [
        os.path.join(directory, command)
        for directory in env.get("PATH", os.defpath).split(os.pathsep)
    ]


def _assignments(env: dict[str, str]) -> list[bytes]:
    """Return an environment as execve(2) takes it. Raises what :mod:`subprocess` does."""
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


def with_pipes(
    keywords: dict[str, Any],
    *,
    input: Any,  # noqa: A002 - as subprocess.run
    capture_output: bool,
) -> dict[str, Any]:
    """Return keywords for :class:`Popen` with the pipes that ``input`` and ``capture_output`` take.

    Raises the ValueErrors of :func:`subprocess.run`.
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


def _argv(args: Any, executable: Any, *, shell: bool) -> list[str]:
    argv = [args] if isinstance(args, (str, bytes, os.PathLike)) else list(args)
    if shell:
        argv = [executable or "/bin/sh", "-c", *argv]
    if not argv:
        raise SettingsError("args", args, 'a program and its arguments, such as ["ls", "-l"]')
    found = [os.fsdecode(arg) for arg in argv]
    if any("\0" in arg for arg in found):
        raise ValueError("embedded null byte")
    return found


def _first(args: Any) -> Any:
    # args may be any sequence
    return args if isinstance(args, (str, bytes, os.PathLike)) else list(args)[0]  # noqa: RUF015

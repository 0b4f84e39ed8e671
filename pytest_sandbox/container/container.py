"""The class Container: the public interface of this package.

Each method passes the container's :class:`~pytest_sandbox.container.handle.Handle` to a function of
another file. No other file of the package imports this one.
"""

from __future__ import annotations

import subprocess
import time
from contextlib import suppress
from dataclasses import replace
from signal import SIGKILL
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, Self, TypeVar, overload

from pytest_sandbox.container import processes
from pytest_sandbox.container.call import run_call
from pytest_sandbox.container.conditions import of_keywords
from pytest_sandbox.container.diff import Changes, changes_of
from pytest_sandbox.container.files import Files
from pytest_sandbox.container.lifecycle import LocalHandle
from pytest_sandbox.container.popen import Popen, with_pipes
from pytest_sandbox.container.signatures import typed_popen, typed_run
from pytest_sandbox.container.waiting import DEFAULT_TIMEOUT, joined, start_logged, wait_for
from pytest_sandbox.errors import ContainerStopped, OutOfMemory
from pytest_sandbox.settings.settings import Settings

if TYPE_CHECKING:
    import os
    import re
    from collections.abc import Callable, Iterable
    from typing import Unpack

    from pytest_sandbox.container.conditions import Condition, Http
    from pytest_sandbox.container.handle import Handle
    from pytest_sandbox.container.remote import RemoteContainer
    from pytest_sandbox.image.image import Image
    from pytest_sandbox.outcome import Stats
    from pytest_sandbox.settings.kwargs import SettingsKwargs

__all__ = ["Container", "ContainerFactory", "open_remote", "start_saved"]

__tracebackhide__ = True  # pytest shows the line of the test; --full-trace shows all

#: Seconds that diff() may take to find changes.
_DIFF_TIMEOUT = 30.0
P = ParamSpec("P")
T = TypeVar("T")


class Container(Files):
    """A container: ``with Container(memory="512m") as c: c.run(["true"])``.

    The settings are those of :class:`~pytest_sandbox.settings.settings.Settings`, as keywords; with
    ``settings``, the keywords replace some of them. Any thread may use a container.

    Raises :class:`SettingsError` for an invalid setting.
    """

    def __init__(
        self, settings: Settings | None = None, /, **keywords: Unpack[SettingsKwargs]
    ) -> None:
        if settings is None:
            settings = Settings(**keywords)
        elif keywords:
            settings = settings.replace(**keywords)
        self.handle = LocalHandle(settings)

    def __enter__(self) -> Self:
        return self if self.handle.state == "running" else self.start()

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Container {self.id or '(no id yet)'} {self.status}>"

    @property
    def settings(self) -> Settings:
        """The settings of the container."""
        return self.handle.settings

    @property
    def id(self) -> str:
        """The id, which is also the host name unless ``hostname`` is set; "" before the start."""
        return self.handle.id

    @property
    def hostname(self) -> str:
        """The host name inside: the first of ``hostname``, else the id."""
        return self.handle.hostname

    @property
    def pid(self) -> int:
        """The PID of the container's init, outside. Raises :class:`ContainerStopped` unless it
        runs.
        """
        return self.handle.running().pid

    @property
    def status(self) -> str:
        """The state: "created", "running", "paused", or "stopped" (also if init was killed from
        outside).
        """
        return self.handle.status

    @property
    def ip_address(self) -> str | None:
        """The address on its :class:`~pytest_sandbox.Network`, such as "172.30.0.2"; None without a
        network, and before the start.
        """
        return self.handle.endpoint.address if self.handle.endpoint else None

    @property
    def host_address(self) -> str | None:
        """The loopback address of the host on which its ports are published, such as
        "127.64.0.1"; no other container has it. None without ``publish``, and before the start.
        """
        return (self.handle.published.address or None) if self.handle.published else None

    @property
    def ports(self) -> dict[int | str, int]:
        """The port of :attr:`host_address` for each published port inside: by its number for TCP,
        by text such as "53/udp" for UDP.
        """
        return dict(self.handle.published.ports) if self.handle.published else {}

    def start(self) -> Self:
        """Start the container, and return it.

        Raises :class:`ContainerStopped` if it was started before, :class:`ImageError` for an image
        that does not exist, :class:`UnsupportedError` for a setting that this host cannot enforce,
        and :class:`SetupError` for a step that failed.
        """
        if self.handle.state != "created":
            raise ContainerStopped(
                f"{self.handle.name} is {self.status}: it starts once. Make a new one."
            )
        self.handle.start()
        return self

    def close(self) -> None:
        """Kill what runs inside, wait for its end, and discard what was written.

        A second call does nothing.
        """
        self.handle.close()

    # -- processes

    @typed_popen
    def popen(self, args: Any, *, log: bool = False, **keywords: Any) -> Popen[Any]:
        """Start a command inside, with the arguments and errors of :class:`subprocess.Popen`.

        ``user`` (also ``"USER:GROUP"``), ``group`` and ``extra_groups`` are looked up in the
        container's files; environment, directory and user default to those of the settings and the
        image. With ``log``, the last megabyte of its output is kept for :meth:`logs` and
        :meth:`wait_for`. Raises :class:`ContainerStopped` unless the container runs and is not
        paused.
        """
        if log:
            return start_logged(self.handle, args, keywords)
        return Popen(self.handle, args, **keywords)

    def logs(self) -> str:
        """Return the output that is kept of the commands started with ``popen(log=True)``, one
        command after the other.
        """
        return "".join(log.text() for log in self.handle.logs)

    def wait_for(
        self,
        condition: Condition | None = None,
        /,
        *,
        port: int | None = None,
        log: str | re.Pattern[str] | None = None,
        http: str | Http | None = None,
        run: str | Iterable[str] | None = None,
        file: str | os.PathLike[str] | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        """Return once each of these has held: a process inside listens on the TCP ``port``; the
        output of ``popen(log=True)`` has the text or regular expression ``log``; a GET of ``http``
        on ``port`` (default: 80) is answered with 200 to 399; the command ``run`` exits with 0; the
        path ``file`` exists.

        ``condition`` joins conditions by ``|`` and ``&``. Without any of these, it is the image's
        HEALTHCHECK.

        Raises :class:`ServiceError` when a command fails that this process has started inside
        before, or nothing runs any more; :class:`ServiceTimeout`, a TimeoutError, after
        ``timeout`` seconds (default: 60); :class:`SettingsError` without a condition.
        """
        handle = self.handle.running()
        keywords = of_keywords(port=port, log=log, http=http, run=run, file=file)
        wait_for(
            handle,
            joined(handle, [*([] if condition is None else [condition]), *keywords]),
            timeout,
            commands=list(handle.commands),
            name=handle.name,
        )

    @typed_run
    def run(
        self,
        args: Any,
        *,
        input: Any = None,  # noqa: A002 - as subprocess
        capture_output: bool = False,
        timeout: float | None = None,
        check: bool = False,
        **keywords: Any,
    ) -> subprocess.CompletedProcess[Any]:
        """Run a command inside, with the arguments, the result and the errors of
        :func:`subprocess.run`.

        After ``timeout`` seconds (default: the setting), the command and its descendants are
        killed. ``check`` raises :class:`OutOfMemory` if the command failed and the kernel killed a
        process inside for memory meanwhile. Further keywords are those of :meth:`popen`.
        """
        keywords = with_pipes(keywords, input=input, capture_output=capture_output)
        timeout = self.settings.timeout if timeout is None else timeout
        end = None if timeout is None else time.monotonic() + timeout
        handle = self.handle
        oom_kills = handle.cgroup.oom_kills() if check and handle.state != "created" else 0
        popen = self.popen(args, start_timeout=timeout, **keywords)
        try:
            stdout, stderr = popen.communicate(
                input, timeout=None if end is None else max(0, end - time.monotonic())
            )
        except BaseException as error:
            popen.end()
            if isinstance(error, subprocess.TimeoutExpired):
                # The output until then is in it as bytes, as with subprocess.
                error.timeout = timeout  # type: ignore[assignment]
            raise
        finally:
            popen.close_pipes()
        if check and popen.returncode:
            _raise_failed(handle, popen, stdout, stderr, oom_kills)
        return subprocess.CompletedProcess(popen.args, popen.returncode, stdout, stderr)

    @overload
    def call(
        self, func: Callable[..., T], /, *args: Any, timeout: float | None, **keywords: Any
    ) -> T: ...
    @overload
    def call(self, func: Callable[P, T], /, *args: P.args, **keywords: P.kwargs) -> T: ...
    def call(
        self, func: Callable[..., Any], /, *args: Any, timeout: Any = None, **keywords: Any
    ) -> Any:
        """Run ``func(*args, **keywords)`` in a fork of this process inside; return its value or
        raise its exception.

        It runs as ``user``, else as the image's USER, else as the invoking user. Arguments are
        copied with the memory of this process; the value comes back as data (see
        :mod:`pytest_sandbox.container.values`). An exception has the traceback inside as its cause.

        Raises :class:`TimeoutError` after ``timeout`` seconds (default: the setting),
        :class:`OutOfMemory` if the fork was killed for memory, and :class:`SandboxError` if it
        ended without an answer or returned more than 64 MiB.
        """
        timeout = self.settings.timeout if timeout is None else timeout
        return run_call(self.handle, func, args, keywords, timeout)

    def kill(self, signal: int = SIGKILL) -> None:
        """Send a signal (default: SIGKILL) to every process inside but init.

        After SIGKILL, it waits up to 2 seconds for their end.
        """
        if signal == SIGKILL:
            processes.kill_all(self.handle.ready())
        else:
            processes.send_to_all(self.handle.ready(), int(signal))

    def stop(self, timeout: float = 10) -> None:
        """End what runs inside, as ``docker stop`` does.

        The commands of this process get the image's STOPSIGNAL (default: SIGTERM), and after
        ``timeout`` seconds (default: 10) everything gets SIGKILL. What was written stays until
        :meth:`close`: the container can be read, committed, and used again.
        """
        number = self.handle.ready().rootfs.stop_signal
        commands = list(self.handle.commands)
        for command in commands:
            command.send_signal(number)
        end = time.monotonic() + timeout
        for command in commands:
            with suppress(subprocess.TimeoutExpired):
                command.wait(max(0, end - time.monotonic()))
        self.kill()
        for command in commands:
            command.await_end()

    def pause(self) -> None:
        """Freeze every process inside until :meth:`unpause`, by the cgroup freezer.

        Raises :class:`UnsupportedError` if this host has none.
        """
        self.handle.pause()

    def unpause(self) -> None:
        """Let the processes continue after :meth:`pause`."""
        self.handle.unpause()

    # -- results

    def stats(self) -> Stats:
        """Return what the container uses: bytes, seconds, and processes without its init.

        A figure is None if this host does not count it.
        """
        return replace(self.handle.figures(), **self.handle.cgroup.pressure())

    def commit(
        self,
        name: str | None = None,
        *,
        message: str = "",
        author: str = "",
        changes: Iterable[str] = (),
    ) -> Image:
        """Commit what was written so far as an image; the container goes on.

        A container starts from it as fast as from any other image. Without arguments, the image is
        in memory while this process or a container refers to it; that takes no copy unless
        something runs inside. With any, the image is copied to the store, as by :meth:`Image.load`:
        ``name`` is a reference as docker reads it, ``message`` and ``author`` are in the history,
        and ``changes`` of the configuration are as in a Dockerfile, such as ``"ENV A=1"``.

        Raises :class:`ImageError` for an invalid name, :class:`SettingsError` for a change.
        """
        from pytest_sandbox.container.snapshot import commit
        from pytest_sandbox.container.store_commit import Details

        details = Details.read(name, message=message, author=author, changes=changes)
        return commit(self.handle.running(), details)

    def diff(self) -> Changes:
        """Return what differs from what the container was started from, sorted by path, as ``docker
        diff``.

        It lists at most a million changes, and searches for at most 30 seconds: ``.complete`` tells
        whether these are all, ``.counted`` how many were found.
        """
        return changes_of(self.handle.running(), seconds=_DIFF_TIMEOUT)


def _raise_failed(
    handle: Handle, popen: Popen[Any], stdout: Any, stderr: Any, oom_kills: int
) -> None:
    """Raise the error of ``check=True`` for a command that failed."""
    assert popen.returncode is not None
    if handle.cgroup.oom_kills() > oom_kills:
        used = handle.figures()
        raise OutOfMemory(
            popen.returncode,
            popen.args,
            stdout,
            stderr,
            memory_limit=handle.settings.memory,
            memory_peak=used.memory_peak,
        )
    raise subprocess.CalledProcessError(popen.returncode, popen.args, stdout, stderr)


class ContainerFactory(Protocol):
    """The type of the fixture ``container_factory``."""

    def __call__(
        self, settings: Settings | None = None, /, **keywords: Unpack[SettingsKwargs]
    ) -> Container:
        """Return a new container, which is closed at the end of the session at the latest."""


def open_remote(remote: RemoteContainer) -> Container:
    """Return a container of another process, to run commands in it and to read its files.

    Closing it leaves the container running. Raises :class:`ContainerStopped` if it has ended.
    """
    from pytest_sandbox.container.remote import open_handle

    container = Container.__new__(Container)
    container.handle = open_handle(remote)
    return container


def start_saved(id: str) -> Container:  # noqa: A002 - as SavedLayer
    """Start a container with the content of a saved layer, which it does not change.

    Raises :class:`SandboxError` if there is none of this id.
    """
    from pytest_sandbox.container import saved_layers

    saved = saved_layers.find(id)
    container = Container(**{**saved.settings, "timeout": None})
    container.handle.label = saved.label
    container.handle.saved = saved.layers
    return container.start()

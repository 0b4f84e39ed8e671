"""A container: create, start, run, call, stop. The one object of this library that has a state."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from signal import SIGKILL
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, Self, TypeVar, overload

from pytest_sandbox.client import session
from pytest_sandbox.container import processes
from pytest_sandbox.container.build_spec import spec_for
from pytest_sandbox.container.configure import settle
from pytest_sandbox.container.diff import Changes, changes_of
from pytest_sandbox.container.files import Files
from pytest_sandbox.container.fork import Child, fork_into, run_call
from pytest_sandbox.container.lifecycle import Lifecycle, held_here
from pytest_sandbox.container.popen import Popen, with_pipes
from pytest_sandbox.container.rootfs import Rootfs
from pytest_sandbox.container.signatures import typed_popen, typed_run
from pytest_sandbox.errors import ContainerStopped, OutOfMemory, SetupError, UnsupportedError
from pytest_sandbox.linux import pty
from pytest_sandbox.runtime import users
from pytest_sandbox.runtime.join import Entrance
from pytest_sandbox.runtime.spec import OVERHEAD
from pytest_sandbox.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Unpack

    from pytest_sandbox.client.requests import Descriptors
    from pytest_sandbox.client.snapshots import Snapshot
    from pytest_sandbox.image.image import Image
    from pytest_sandbox.linux.syscall_batch import Failure
    from pytest_sandbox.outcome import Stats
    from pytest_sandbox.runtime.protocol import Message
    from pytest_sandbox.runtime.spec import Spec
    from pytest_sandbox.settings.kwargs import SettingsKwargs

__all__ = ["Child", "Container", "Popen"]

__tracebackhide__ = (
    True  # pytest shows the line of the test that asked, not ours; --full-trace shows all
)

_HELD_OUTSIDE = (
    "what is in a container of its own cannot use it. Keep the test outside "
    "(no_sandbox), or start the container inside."
)
#: Seconds that looking for changes may take.
_MOST_SECONDS = 30.0
P = ParamSpec("P")
T = TypeVar("T")


class Container(Lifecycle, Files):
    """A place of its own for processes: ``with Container(memory="512m") as c: c.run(["true"])``.

    Settings are those of :class:`~pytest_sandbox.settings.Settings`, as keywords. Any thread may
    use a container.

    Raises :class:`SettingsError` for a wrong setting, and at :meth:`start`
    :class:`UnsupportedError` for a limit that this host cannot enforce and :class:`SetupError` for
    a step that failed.
    """

    def __init__(
        self, settings: Settings | None = None, /, **keywords: Unpack[SettingsKwargs]
    ) -> None:
        if settings is None:
            self.settings = Settings(**keywords)
        else:
            self.settings = settings.replace(**keywords) if keywords else settings
        self.id = ""
        self.label = ""
        self.kept = {}
        self.directories = ()
        self.taken = None
        self.frozen = []
        self._renewing = threading.Lock()
        self._state = "created"
        self.endpoint = None
        self.commands = set()
        self.children = set()
        self.freezing = ""
        self._closing = threading.Lock()
        self._closer = 0
        self._is_held = False

    def __enter__(self) -> Self:
        return self if self._state == "running" else self.start()

    def __exit__(self, *_exception: object) -> None:
        self.close()

    @classmethod
    def check(cls, settings: Settings) -> None:
        """Raise what :meth:`start` would for what the settings name: an image, a directory, a user
        or a device that is not there, what no host supports.
        """
        from pytest_sandbox.container.validate import check

        check(settings)

    @classmethod
    def prepare(cls, settings: Settings) -> None:
        """Have a container of these settings made ahead, so that the next :meth:`start` finds it
        ready.
        """
        if not isinstance(settings.network, str):
            return  # its first container is what a network starts with
        launcher = session.current()
        rootfs = Rootfs(settings)
        try:
            spec = spec_for(rootfs, launcher)
            launcher.prepare(spec)
        finally:
            rootfs.release()

    def descriptors(self) -> list[int]:
        """Return what this process has open of the container: nothing that a fork may have inside
        it, or inside another one.
        """
        return [fd for fd in (self.pidfd, self.cgroup.open_fd(), self.rootfs.held) if fd >= 0]

    def _settle(self) -> None:
        settle(self)
        self._make_workdir()

    def _make_workdir(self) -> None:
        """Make a ``workdir`` that is not there, as docker does; where it cannot be made, the first
        command says so.
        """
        if self.settings.workdir is not None or not (
            self.rootfs.is_host or self.rootfs.has(self.workdir)
        ):
            with suppress(OSError):
                self.mkdir(self.workdir, parents=True, exist_ok=True)

    @property
    def pid(self) -> int:
        """The number of the container's init outside."""
        return self._running()._pid  # noqa: SLF001 - its own

    @property
    def workdir(self) -> str:
        """Where commands start: ``workdir``; on the host's root the caller's directory, else the
        image's.
        """
        return self._running().rootfs.workdir

    def _running(self) -> Self:
        if (status := self.status) not in {"running", "paused"}:
            if self._state == "running" and self._owner != os.getpid():
                raise ContainerStopped(
                    f"the container {self.id} is held outside, by process {self._owner}: "
                    f"{_HELD_OUTSIDE}"
                )
            if status == "created":
                raise ContainerStopped(
                    "the container has not been started. Use it in a `with` statement, or call "
                    "start() first."
                )
            raise ContainerStopped(f"{self._called} is {status}: make a new one.")
        return self

    def _awake(self) -> Self:
        self._running()
        if self._state == "paused":
            raise ContainerStopped(f"the container {self.id} is paused. Call unpause() first.")
        if self.taken is not None:
            with self._renewing:
                if self.taken is not None:  # no other thread was faster
                    self._renew(self.taken)
        return self

    def _renew(self, taken: Snapshot) -> None:
        """Go on above a layer that was taken: a new init, a new layer, in the same cgroup and under
        the same name.
        """
        spec = replace(self.spec, above=(*taken.above, *self.spec.above), kept=())
        adopt = partial(self._adopt_renewed, spec, taken)
        self._launcher.renew({"op": "renew", "id": self.id, "spec": spec.to_json()}, adopt)
        settle(self)

    def _adopt_renewed(
        self, spec: Spec, taken: Snapshot, answer: Message, fds: Descriptors
    ) -> None:
        os.close(self.pidfd)
        self.pidfd, self._pid = fds.take(), answer["pid"]
        self.frozen.append(taken)
        self.spec, self.taken = spec, None

    @property
    def launcher(self) -> session.LauncherClient:
        """The launcher that made it."""
        return self._launcher

    # -- the ways in

    def entrance(self) -> Entrance:
        """Return where a payload of this process enters."""
        self._awake()
        cgroup = self.cgroup.fd()
        joins = self.cgroup.join_paths() if cgroup < 0 else ()
        return Entrance(self.spec, self.pidfd, joins, cgroup, *self.user_namespaces())

    def user_namespaces(self) -> tuple[int, int]:
        """Return the payloads' user namespace, and the one that the container was built in; -1
        where there is none.
        """
        return self._launcher.user_of(self.spec), self._launcher.builder_fd

    def surroundings(
        self, *, env: Any, cwd: Any, user: str | None
    ) -> tuple[dict[str, str], str, str | None]:
        """Return environment, directory and user of a command, from its own arguments over the
        settings'.
        """
        own = env is not None
        return (
            {os.fsdecode(name): os.fsdecode(value) for name, value in env.items()}
            if own
            else self.rootfs.environment(self.hostname),
            self.workdir if cwd is None else os.path.join(self.workdir, os.fsdecode(cwd)),
            user if user is not None else self.rootfs.user,
        )

    def find_user(self, text: str) -> users.User:
        """Return who a user is by the files inside.

        Raises :class:`SettingsError` for an unknown name.
        """
        return users.find(text, self.read_plain)

    def openpty(self) -> tuple[int, int]:
        """Return the two ends of a pseudo-terminal of the container's own /dev/pts, as
        :func:`os.openpty`.
        """
        return pty.open_pair(self._open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY))

    def raise_for(self, failure: Failure) -> NoReturn:
        """Raise what a step into this container failed with."""
        if failure.step.startswith("raise ulimits"):
            raise UnsupportedError(
                f"ulimits: {failure.call}",
                "Start pytest with a higher hard limit (ulimit -H), or ask for less.",
            )
        if (
            failure.errno == errno.ESRCH
        ):  # an init that is ending has lost its namespaces a moment before its descriptor says so
            raise ContainerStopped.ended(self.id)
        self._running()  # one that has ended is not entered
        raise SetupError(failure.step, str(failure.error().strerror))

    def open_directory(self, path: str) -> int:
        """Open a directory inside for reading; returns a descriptor, the caller's."""
        return self._open(path, os.O_RDONLY | os.O_DIRECTORY)

    # -- processes

    @typed_popen
    def popen(self, args: Any, **keywords: Any) -> Popen[Any]:
        """Start a command inside: :class:`subprocess.Popen`'s arguments, and ``user``."""
        return Popen(self._running(), args, **keywords)

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
        """Run a command inside: :func:`subprocess.run`, with its arguments and what it returns and
        raises.

        ``timeout`` is the settings' where it is not given; over it the command and all below it are
        killed. ``check`` raises :class:`OutOfMemory` where the kernel killed for memory meanwhile.
        """
        keywords = with_pipes(keywords, input=input, capture_output=capture_output)
        timeout = self.settings.timeout if timeout is None else timeout
        end = None if timeout is None else time.monotonic() + timeout
        kills = self.cgroup.oom_kills() if check else 0
        popen = self.popen(args, start_timeout=timeout, **keywords)
        try:
            stdout, stderr = popen.communicate(
                input, timeout=None if end is None else max(0, end - time.monotonic())
            )
        except BaseException as error:
            popen.end()
            if isinstance(
                error, subprocess.TimeoutExpired
            ):  # it has the output until then already, as bytes, as subprocess has it
                error.timeout = timeout  # type: ignore[assignment]
            raise
        finally:
            popen.close_pipes()
        if check and popen.returncode:
            self._raise_for(popen, stdout, stderr, kills)
        return subprocess.CompletedProcess(popen.args, popen.returncode, stdout, stderr)

    def _raise_for(self, popen: Popen[Any], stdout: Any, stderr: Any, kills: int) -> None:
        assert popen.returncode is not None
        if self.cgroup.oom_kills() > kills:
            used = self.figures()
            raise OutOfMemory(
                popen.returncode,
                popen.args,
                stdout,
                stderr,
                memory_limit=self.settings.memory,
                memory_peak=used.memory_peak,
            )
        raise subprocess.CalledProcessError(popen.returncode, popen.args, stdout, stderr)

    def fork(self) -> Child | None:
        """Fork the calling process into the container: None in the child, which is inside; a
        :class:`Child` in the caller.

        The child must end by :func:`os._exit`. Raises :class:`UnsupportedError` where the caller
        may not enter a PID namespace.
        """
        return fork_into(self._awake(), self.living())

    def living(self) -> list[Container]:
        """Return the containers of this process; not those outside, where it is a fork that is
        inside one.
        """
        return [one for one in held_here if one._home is self._home]  # noqa: SLF001 - its own

    @overload
    def call(
        self, func: Callable[..., T], /, *args: Any, timeout: float | None, **keywords: Any
    ) -> T: ...
    @overload
    def call(self, func: Callable[P, T], /, *args: P.args, **keywords: P.kwargs) -> T: ...
    def call(
        self, func: Callable[..., Any], /, *args: Any, timeout: Any = None, **keywords: Any
    ) -> Any:
        """Run ``func(*args, **keywords)`` inside, in a fork of this process; return its value or
        raise its exception.

        Values travel as data (see :mod:`pytest_sandbox.container.values`); the traceback inside is
        the exception's cause. Raises :class:`TimeoutError` over ``timeout`` seconds,
        :class:`SandboxError` where the fork ended without an answer, and :class:`OutOfMemory` where
        it was killed for memory.
        """
        return run_call(
            self._awake(),
            func,
            args,
            keywords,
            self.settings.timeout if timeout is None else timeout,
        )

    def processes(self) -> list[tuple[int, str]]:
        """Return PID (inside) and command line of every process inside but init."""
        return processes.listed(self._running())

    def kill(self, signal: int = signal.SIGKILL) -> None:
        """Send a signal to every process inside but init."""
        if signal == SIGKILL:
            processes.kill_all(self._awake())
        else:
            processes.send_to_all(self._awake(), int(signal))

    def kill_tree(self, pid: int) -> None:
        """Kill a command, by its PID outside, and all below it."""
        processes.kill_tree(self._running(), pid)

    def stop(self, timeout: float = 10) -> None:
        """End what runs inside as ``docker stop`` does: the image's STOPSIGNAL (else SIGTERM) to
        each command of this process's, SIGKILL after ``timeout`` seconds.

        What was written stays until :meth:`close`: the container can be read, committed, and used
        again.
        """
        number = self._awake().rootfs.stop_signal
        commands = list(self.commands)
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
        """Stop every process inside until :meth:`unpause` (the cgroup freezer)."""
        self._running().cgroup.freeze()
        self._state = "paused"

    def unpause(self) -> None:
        """Let the processes go on."""
        self._running().cgroup.thaw()
        self._state = "running"

    # -- what it has done

    def stats(self) -> Stats:
        """Return what the container uses; init, which is ours, is not among its processes."""
        return replace(self.figures(), **self.cgroup.pressure())

    def figures(self) -> Stats:
        """Return what :meth:`stats` does but for the pressure, which takes files of its own to
        read.
        """
        return without_init(self._running().cgroup.stats(), self.settings)

    def commit(self, name: str | None = None) -> Image:
        """Freeze what was written so far as an image, from which containers start as fast as from
        any other; this one goes on.

        Without a ``name`` the image lives in memory, as long as this process and anybody who has it
        or lies on it; that takes no copy, unless something still runs inside. With one, a reference
        as docker reads it, it is stored as by :meth:`Image.load`, which takes a copy.
        """
        from pytest_sandbox.container.snapshot import commit

        self._running()
        return commit(self, name)

    def diff(self) -> Changes:
        """Return what differs from what the container started on, sorted by path, as ``docker
        diff``.

        At most a million changes are listed, found within 30 seconds; ``.complete`` tells whether
        these are all, ``.counted`` how many were found.
        """
        self._running()
        return changes_of(self, seconds=_MOST_SECONDS)

    @contextmanager
    def opened_layer(self) -> Iterator[tuple[int, dict[str, tuple[str, tuple[str, ...]]]]]:
        """Return what :meth:`layer` does, with a descriptor that is open within the block."""
        answer, fds = self._layer()
        with fds:
            if not fds:
                raise ContainerStopped.ended(self.id)
            yield fds.first(), self._places(fds.first(), answer)

    def layer(self) -> tuple[int, dict[str, tuple[str, tuple[str, ...]]]]:
        """Return the directory of the writable layer (a descriptor, the caller's), and where each
        overlay in it lies ("": the root), and on what.

        An overlay is a directory with a number; below it, ``upper`` holds what was written.
        """
        with self.opened_layer() as (layer, places):
            return os.dup(layer), places

    def _places(self, layer: int, answer: Message) -> dict[str, tuple[str, tuple[str, ...]]]:
        numbers = sorted(int(name) for name in os.listdir(layer) if name.isdigit())
        return {str(number): self._lower_of(number, answer["points"]) for number in numbers}

    def _layer(self) -> tuple[Message, Descriptors]:
        return self._launcher.request({"op": "layer", "id": self.id})

    def _lower_of(self, number: int, points: list[list[str]]) -> tuple[str, tuple[str, ...]]:
        if number == 0:
            return "", (*self._above(""), *self.spec.lower)
        if number >= 2000:
            return self.spec.scratch[number - 2000][0], self.spec.scratch[number - 2000][1:]
        point, lower = (
            [self.spec.directories[number - 1000]] * 2 if number >= 1000 else points[number - 1]
        )
        return point, (*self._above(point), lower)

    def _above(self, point: str) -> list[str]:
        """Return the directories of committed layers that an overlay lies on, as this process
        reaches them.
        """
        shelves = [*reversed(self.frozen), *getattr(self.rootfs.image, "shelves", ())]
        stored = [place for at, place in self.rootfs.above if at == point and os.path.isabs(place)]
        return [*(path for one in shelves for path in one.paths(point)), *stored]


def without_init(found: Stats, settings: Settings) -> Stats:
    """Return a cgroup's figures as the container's: init, which is ours, is not among its
    processes.
    """
    less = {
        name: max(0, value - OVERHEAD)
        for name in ("pids_current", "pids_peak")
        if (value := getattr(found, name)) is not None
    }
    return replace(found, memory_limit=settings.memory, **less)

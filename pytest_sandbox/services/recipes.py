"""Services that are ready to use: the servers that most suites need.

Each runs the host's program (Debian's package is named if it is missing), or that of an image. What
tests write is discarded, so nothing is forced to disk. The ready condition is a query.
"""

from __future__ import annotations

import shlex
import sysconfig
from signal import SIGINT, SIGTERM
from typing import TYPE_CHECKING, Any

from pytest_sandbox.container.conditions import Http, Query
from pytest_sandbox.services import queries
from pytest_sandbox.services.prepared import DATA, Prepared, Program
from pytest_sandbox.services.service import Service
from pytest_sandbox.services.service_values import is_one, keywords_only

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable

    from pytest_sandbox.services.service import Running

    Files = Iterable[str | os.PathLike[str]]
    Setup = Callable[[Running], object] | None

__all__ = ["mariadb", "postgres", "redis", "s3"]

_POSTGRES = Program(("postgres",), "postgresql", "postgres:16", "/usr/lib/postgresql/*/bin")
#: Small log segments, since a clone copies the one that it writes first.
_INITDB = (
    f"initdb -D {DATA} -U postgres -A trust -E UTF8 --locale=C --no-sync --wal-segsize=1 && "
    f"echo 'host all all all trust' >>{DATA}/pg_hba.conf"
)
_POSTGRES_OPTIONS = {
    "listen_addresses": "*",
    "unix_socket_directories": "/tmp",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "64MB",
    "min_wal_size": "2MB",
    "jit": "off",
}

_REDIS = Program(("redis-server", "valkey-server"), "redis-server", "redis:7")
_REDIS_OPTIONS = "--bind '*' --protected-mode no --save '' --appendonly no --dir /tmp"

_NO_MOTO = (
    "the program moto_server is not there. Install it (pip install 'moto[server]'), or use an "
    'image that has it, such as image="motoserver/moto"'
)

_MARIADB = Program(("mariadbd",), "mariadb-server", "mariadb:10.11")
#: The user of the server may not be able to write to the caller's directory of temporary files.
_INSTALL_DB = (
    f"export TMPDIR=/tmp && mariadb-install-db --no-defaults --datadir={DATA} --skip-test-db "
    "--skip-name-resolve "
    "--auth-root-authentication-method=normal --innodb-log-file-size=4M && "
    "printf '%s\\n' 'flush privileges;' \"create user root@'%';\" "
    "\"grant all on *.* to root@'%' with grant option;\" 'create database test;' | "
    f"mariadbd --no-defaults --bootstrap --datadir={DATA} --innodb-log-file-size=4M"
)
_MARIADB_OPTIONS = (
    "--bind-address=* --socket=/tmp/mariadb.sock --pid-file=/tmp/mariadb.pid --skip-name-resolve "
    "--tmpdir=/tmp --skip-log-bin --innodb-flush-log-at-trx-commit=0 --innodb-doublewrite=0 "
    "--innodb-flush-method=nosync --innodb-log-file-size=4M --innodb-buffer-pool-size=32M"
)


@keywords_only
def redis(*, ahead: int = 0, port: int = 6379, **settings: Any) -> Service:
    """Return Redis (or Valkey) without persistence; ``url`` is ``redis://HOST:PORT/0``.

    ``ahead`` is how many servers are started in advance (0 or 1). Further ``settings`` are those of
    :class:`Service`. Raises :class:`ServiceError` at the start if neither program is there.
    """
    program = "$(command -v redis-server || command -v valkey-server || echo redis-server)"
    options = f"--port {port} {_REDIS_OPTIONS}"
    command = _REDIS.script(f"exec {program} {options}")
    ready = Query(port, queries.ask_redis, "PING")
    made = Service(command, ready=ready, **{"name": "redis", **settings})
    made.is_ahead = is_one(ahead)
    made.host_command = lambda: (_REDIS.find(made.name), *shlex.split(options))
    made.url_form = "redis://{host}:{port}/0"
    made.missing = _REDIS.missing
    made.is_disposable = True
    return made


@keywords_only
def s3(*, port: int = 5000, **settings: Any) -> Service:
    """Return moto's server, which keeps the buckets of S3 in memory; ``url`` is
    ``http://HOST:PORT``, an ``endpoint_url`` for boto3.

    Any access key is accepted. It also answers for the other services of AWS that moto has, if
    what moto needs for them is installed. The program ``moto_server`` is searched next to this
    Python, and then in PATH. Further ``settings`` are those of :class:`Service`. Raises
    :class:`ServiceError` at the start if the program is not there.
    """
    search = f"PATH={shlex.quote(sysconfig.get_path('scripts'))}:$PATH; export PATH; "
    command = ("/bin/sh", "-c", f"{search}exec moto_server -H 0.0.0.0 -p {port}")
    # GET / lists the buckets.
    made = Service(command, ready=Http("/", port=port), **{"name": "s3", **settings})
    made.missing = _NO_MOTO
    made.is_disposable = True
    return made


@keywords_only
def postgres(
    *,
    setup: Setup = None,
    files: Files = (),
    ahead: int = 0,
    port: int = 5432,
    options: dict[str, str] | None = None,
    **settings: Any,
) -> Prepared:
    """Return PostgreSQL, of which each start is a clone of prepared files.

    ``url`` is ``postgresql://postgres@HOST:PORT/postgres``; there is no password. ``setup``,
    ``files`` and ``ahead``: see :class:`Prepared`. ``options`` are added to the server's
    configuration. By default nothing is forced to disk (``fsync=off``, ``synchronous_commit=off``,
    ``full_page_writes=off``). Further ``settings`` are those of :class:`Service`.
    """
    given = {**_POSTGRES_OPTIONS, "port": str(port), **(options or {})}
    command = " ".join(["postgres", "-D", DATA, *(f"-c {_quoted(*one)}" for one in given.items())])
    made = Prepared(
        _POSTGRES,
        _INITDB,
        command,
        setup=setup,
        files=files,
        ahead=ahead,
        stop_signal=SIGINT,  # "fast shutdown": does not wait for clients
        ready=Query(port, queries.ask_postgres, "select 1"),
        **{"name": "postgres", "user": "postgres", "workdir": "/", **settings},
    )
    made.url_form = "postgresql://postgres@{host}:{port}/postgres"
    return made


@keywords_only
def mariadb(
    *, setup: Setup = None, files: Files = (), ahead: int = 0, port: int = 3306, **settings: Any
) -> Prepared:
    """Return MariaDB, of which each start is a clone of prepared files.

    ``url`` is ``mysql://root@HOST:PORT/test``; there is no password. ``setup``, ``files`` and
    ``ahead``: see :class:`Prepared`. Further ``settings`` are those of :class:`Service`. By default
    nothing is forced to disk.
    """
    command = f"mariadbd --no-defaults --datadir={DATA} --port={port} {_MARIADB_OPTIONS}"
    made = Prepared(
        _MARIADB,
        _INSTALL_DB,
        command,
        setup=setup,
        files=files,
        ahead=ahead,
        stop_signal=SIGTERM,
        ready=Query(port, queries.ask_mysql, "select 1"),
        **{"name": "mariadb", "user": "mysql", "workdir": "/", **settings},
    )
    made.url_form = "mysql://root@{host}:{port}/test"
    return made


def _quoted(name: str, value: str) -> str:
    return shlex.quote(f"{name}={value}")

"""A database cluster that is set up once per session, and cloned for each test in milliseconds."""

from __future__ import annotations

import glob
import shutil
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_sandbox import Container, Image

PROGRAMS = next(iter(sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)), "")
DATA = "/var/lib/postgresql/votes"
SCHEMA = """
create table candidate (name text primary key);
create table vote (id serial primary key, candidate text not null references candidate);
insert into candidate select 'candidate ' || n from generate_series(1, 1000) n;
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not PROGRAMS or not shutil.which(f"{PROGRAMS}/postgres"):
        for item in items:
            if "database" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.skip(reason="needs PostgreSQL (Debian: postgresql-15)"))


def control(machine: Container, *args: str) -> None:
    """Run pg_ctl, which waits until the server has started or stopped."""
    machine.run(
        [f"{PROGRAMS}/pg_ctl", "-D", DATA, "-l", "/tmp/log", "-w", *args],
        check=True,
        capture_output=True,
    )


@pytest.fixture(scope="session")
def prepared(container_factory: Callable[..., Container]) -> Image:
    """Create a cluster with tables and a thousand rows, which is slow, stop the server, and commit
    the files.
    """
    with container_factory(user="postgres", workdir="/var/lib/postgresql") as machine:
        machine.run(
            [f"{PROGRAMS}/initdb", "-D", DATA, "--no-sync", "-A", "trust"],
            check=True,
            capture_output=True,
        )
        control(machine, "-o", "-c fsync=off -c listen_addresses='' -k /tmp", "start")
        machine.run(
            ["psql", "-h", "/tmp", "-v", "ON_ERROR_STOP=1", "-q", "postgres"],
            input=SCHEMA,
            text=True,
            check=True,
        )
        control(machine, "stop")
        return machine.commit()


@pytest.fixture
def database(
    prepared: Image, container_factory: Callable[..., Container]
) -> Iterator[Callable[[str], str]]:
    """Start a server on a clone of the cluster, and yield a function that runs a query."""
    with container_factory(
        image=prepared, user="postgres", workdir="/var/lib/postgresql"
    ) as machine:
        control(machine, "-o", "-c fsync=off -c listen_addresses='' -k /tmp", "start")

        def ask(query: str) -> str:
            done = machine.run(
                ["psql", "-h", "/tmp", "-At", "-c", query, "postgres"],
                check=True,
                capture_output=True,
                text=True,
            )
            return done.stdout.strip()

        yield ask

"""The shop's system: its API, PostgreSQL and Redis, each in a container, on one network."""

from __future__ import annotations

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from pytest_sandbox import Network
from pytest_sandbox.services import Http, Service, postgres, redis

HERE = Path(__file__).parent


def migrate(database):
    import psycopg
    from shop.store import SCHEMA

    with psycopg.connect(database.url) as connection:
        connection.execute(SCHEMA)


net = Network("shop")  # starts with its first container


@pytest.fixture
def network():
    return net


def shop(patience):
    return Service(
        [sys.executable, "-m", "shop"],
        ready=Http("/health", port=8000),
        workdir=str(HERE),
        env={
            "DATABASE_URL": "postgresql://postgres@db/postgres",
            "CACHE_URL": "redis://cache",
            "SHOP_PATIENCE": str(patience),
        },
        network=net,
        hostname="api",
        name="api",
    )


# A new one of each for each test. The tables are made once; each database is a clone.
database = postgres(
    setup=migrate, files=[HERE / "shop/store.py"], network=net, hostname="db"
).fixture()
cache = redis(network=net, hostname="cache").fixture()
api = shop(patience=60).fixture()
impatient_api = shop(patience=1).fixture()


def pytest_collection_modifyitems(items):
    lacking = [name for name in ("psycopg", "redis") if find_spec(name) is None]
    lacking += [name for name in ("pg_ctlcluster", "redis-server") if shutil.which(name) is None]
    for item in items:
        if lacking and HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=f"needs {', '.join(lacking)}"))

"""The shop's data: orders in PostgreSQL, and a cache in Redis that it can do without."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import psycopg
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from shop.retry import retry

PATIENCE = float(os.environ.get("SHOP_PATIENCE", "20"))  # seconds
#: A server that does not answer is given up after two seconds, also on an open connection.
IMPATIENT = {"connect_timeout": 2, "tcp_user_timeout": 1000, "autocommit": True}

SCHEMA = """
create table stock (item text primary key, count int not null);
create table orders (id uuid primary key, item text not null references stock);
insert into stock values ('cup', 10);
"""


class Store:
    def __init__(self, database: str, cache: str) -> None:
        self._database = database
        self._connection: psycopg.Connection[Any] | None = None
        self._cache = redis.Redis.from_url(
            cache,
            socket_timeout=0.5,
            socket_connect_timeout=0.5,
            retry=Retry(NoBackoff(), 0),  # a cache is not worth waiting for
        )

    def order(self, order: str, item: str) -> None:
        """Order an item. It is made once, however often it is sent."""
        self._execute(
            "with made as (insert into orders values (%s, %s) on conflict do nothing returning 1) "
            "update stock set count = count - 1 where item = %s and exists (select from made)",
            order,
            item,
            item,
        )
        with contextlib.suppress(redis.RedisError):
            self._cache.delete(item)

    def stock(self, item: str) -> int:
        """Return how many there are, from the cache if it answers."""
        with contextlib.suppress(redis.RedisError):
            found = self._cache.get(item)
            if found is not None:
                return int(found)
        [(count,)] = self._execute("select count from stock where item = %s", item)
        with contextlib.suppress(redis.RedisError):
            self._cache.set(item, count, ex=60)
        return int(count)

    def _execute(self, query: str, *arguments: str) -> list[Any]:
        def execute() -> list[Any]:
            if self._connection is None or self._connection.closed:
                self._connection = psycopg.connect(self._database, **IMPATIENT)
            cursor = self._connection.execute(query, arguments)
            return cursor.fetchall() if cursor.description else []

        return retry(execute, psycopg.OperationalError, seconds=PATIENCE)

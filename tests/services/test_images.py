"""Services from images, as those of Docker's registry start: ENTRYPOINT, EXPOSE, HEALTHCHECK."""

from __future__ import annotations

import os

import pytest
from fake_registry import fake_registry
from services.server_images import made_redis, postgres_image

from pytest_sandbox import Container, Image, Network
from pytest_sandbox.services import Port, Service, ServiceError, ServiceTimeout, postgres, redis

pytestmark = pytest.mark.needs("root", "setpriv")

psycopg = pytest.importorskip("psycopg")
client = pytest.importorskip("redis")
TIMEOUT = 60
needs_postgres = pytest.mark.needs("pg_ctlcluster")
needs_redis = pytest.mark.needs("redis-server", "redis-cli")
CHECK = {"Test": ["CMD-SHELL", "pg_isready -h 127.0.0.1 -U postgres"], "Interval": 10_000_000_000}


@pytest.fixture(scope="module")
def image(home, tmp_path_factory):
    """Return the image, with a HEALTHCHECK."""
    return postgres_image(tmp_path_factory.mktemp("image"), Healthcheck=CHECK)


def answer(url):
    with psycopg.connect(url) as connection:
        return connection.execute("select 1").fetchone()


@needs_postgres
def test_the_entrypoint_starts_a_database(image):
    """It initialises the files as root and as the server's user; HEALTHCHECK is waited for, EXPOSE
    published, and STOPSIGNAL ends the server.
    """
    with Service(image=image, env={"POSTGRES_PASSWORD": "secret"}).start() as service:
        assert 5432 == service.port
        assert (1,) == answer(f"postgresql://postgres@{service.host}:{service.port}/postgres")
        service.stop()
        assert "fast shutdown" in service.logs()


@needs_postgres
def test_an_entrypoint_that_refuses_is_an_error(image):
    """The error has the exit status and what the entrypoint has said."""
    with pytest.raises(ServiceError, match="password is not specified") as info:
        Service(image=image).start()
    assert 1 == info.value.returncode


@needs_postgres
def test_a_recipe_uses_the_programs_of_an_image(image):
    """The files are prepared once with the server of the image, by its name, and cloned. The server
    runs as the image's user, from the image's files.
    """

    def setup(db):
        with psycopg.connect(db.url) as connection:
            connection.execute("create table item (name text)")

    image.tag("postgres:16")
    database = postgres(image="postgres:16", setup=setup, ahead=1)
    try:
        for _ in range(2):
            with database.start() as service, psycopg.connect(service.url) as connection:
                assert not service.container.exists("/usr/bin/env")
                connection.execute("insert into item values ('x')")
                assert (1,) == connection.execute("select count(*) from item").fetchone()
                assert ("off",) == connection.execute("show fsync").fetchone()
                pid = connection.execute("select pg_backend_pid()").fetchone()[0]
                status = service.container.read_text(f"/proc/{pid}/status")
                assert "Uid:\t999\t999\t999\t999\n" in status
    finally:
        database.close()


@needs_postgres
@pytest.mark.parametrize(
    ("check", "error", "text"),
    [
        (["CMD", "no-such-check"], ServiceError, "'no-such-check' is not in the image"),
        (["CMD-SHELL", "echo not yet; exit 1"], ServiceTimeout, "exit status 1: not yet"),
    ],
)
def test_a_healthcheck_that_fails_is_named(home, tmp_path, check, error, text):
    """A program of it that is missing ends the wait at once."""
    made = postgres_image(tmp_path, Healthcheck={"Test": check})
    service = Service(image=made, env={"POSTGRES_PASSWORD": "secret"}, timeout=3)
    with pytest.raises(error, match=text):
        service.start()


@needs_postgres
def test_a_recipe_names_what_an_image_lacks(home, image):
    """An image of another server is refused with the program that it lacks."""
    with pytest.raises(ServiceError, match="redis-server or valkey-server is not there"):
        redis(image=image).start()


# -- Redis


@pytest.fixture(scope="module")
def pulled_redis(home):
    """Return the name of an image that was pulled from a registry, with a HEALTHCHECK."""
    check = {"Test": ["CMD", "redis-cli", "ping"], "Interval": 10_000_000_000}
    with fake_registry() as registry:
        pulled = Image.pull(registry.add("library/redis:7", made_redis(Healthcheck=check)))
        pulled.tag("redis:7")
    return "redis:7"


@needs_redis
def test_redis_of_an_image_answers(pulled_redis):
    """The recipe runs the program of the image, without persistence; the real client library reads
    what it has written, and a second server has nothing of it.
    """
    cache = redis(image=pulled_redis, memory="256m")
    for _ in range(2):
        with cache.start() as service, client.Redis.from_url(service.url) as connection:
            assert f"redis://{service.host}:6379/0" == service.url
            assert not service.container.exists("/usr/bin/env")
            assert connection.get("name") is None
            connection.set("name", "value")
            assert b"value" == connection.get("name")
            assert {"save": ""} == connection.config_get("save")


@needs_redis
def test_redis_of_an_image_on_a_network(pulled_redis):
    """Another container reaches it by its name, on the port that was asked for."""

    def ask():
        with client.Redis(host="cache", port=7777) as connection:
            return connection.ping()

    with (
        Network() as net,
        redis(image=pulled_redis, network=net, hostname="cache", port=7777).start(),
        Container(network=net) as other,
    ):
        assert other.call(ask, timeout=TIMEOUT)


@needs_redis
def test_the_entrypoint_of_redis_starts_it(pulled_redis):
    """Without the recipe: EXPOSE is published, HEALTHCHECK waited for, and the server runs as its
    own user in the image's volume; its stop is clean.
    """
    with Service(image=pulled_redis).start() as service:
        with client.Redis(host=service.host, port=service.port) as connection:
            connection.set("name", "value")
            info = connection.info("server")
            assert {"dir": "/data"} == connection.config_get("dir")
            connection.save()
        status = service.container.read_text(f"/proc/{info['process_id']}/status")
        assert "Uid:\t999\t999\t999\t999\n" in status
        assert 999 == service.container.call(lambda: os.stat("/data/dump.rdb").st_uid)
        service.stop()
        assert "User requested shutdown" in service.logs()


@needs_redis
def test_arguments_of_an_entrypoint(pulled_redis):
    """A command for the image's program is given with it, as in docker with --entrypoint."""
    command = ["docker-entrypoint.sh", "--maxmemory", "64mb"]
    with (
        Service(command, image=pulled_redis, ready=Port(6379)).start() as service,
        client.Redis(host=service.host, port=service.port) as connection,
    ):
        assert {"maxmemory": "67108864"} == connection.config_get("maxmemory")


@needs_redis
@pytest.mark.parametrize("user", ["redis", "999:999"])
def test_redis_of_an_image_with_a_user(home, tmp_path, user):
    """The recipe needs no root in the image."""
    image = Image.load(made_redis(User=user).write(tmp_path))
    with redis(image=image).start() as service, client.Redis.from_url(service.url) as connection:
        pid = connection.info("server")["process_id"]
        assert "Uid:\t999\t" in service.container.read_text(f"/proc/{pid}/status")

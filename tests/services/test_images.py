"""Services from images, as those of Docker's registry start: ENTRYPOINT, EXPOSE, HEALTHCHECK."""

from __future__ import annotations

import pytest
from services.server_images import postgres_image

from pytest_sandbox.services import Service, ServiceError, ServiceTimeout, postgres

pytestmark = pytest.mark.needs("root", "pg_ctlcluster", "setpriv")

psycopg = pytest.importorskip("psycopg")
CHECK = {"Test": ["CMD-SHELL", "pg_isready -h 127.0.0.1 -U postgres"], "Interval": 10_000_000_000}


@pytest.fixture(scope="module")
def image(home, tmp_path_factory):
    """Return the image, with a HEALTHCHECK."""
    return postgres_image(tmp_path_factory.mktemp("image"), Healthcheck=CHECK)


def answer(url):
    with psycopg.connect(url) as connection:
        return connection.execute("select 1").fetchone()


def test_the_entrypoint_starts_a_database(image):
    """It initialises the files as root and as the server's user; HEALTHCHECK is waited for, EXPOSE
    published, and STOPSIGNAL ends the server.
    """
    with Service(image=image, env={"POSTGRES_PASSWORD": "secret"}).start() as service:
        assert 5432 == service.port
        assert (1,) == answer(f"postgresql://postgres@{service.host}:{service.port}/postgres")
        service.stop()
        assert "fast shutdown" in service.logs()


def test_an_entrypoint_that_refuses_is_an_error(image):
    """The error has the exit status and what the entrypoint has said."""
    with pytest.raises(ServiceError, match="password is not specified") as info:
        Service(image=image).start()
    assert 1 == info.value.returncode


def test_a_recipe_uses_the_programs_of_an_image(image):
    """The files are prepared once with the server of the image, and cloned."""

    def setup(db):
        with psycopg.connect(db.url) as connection:
            connection.execute("create table item (name text)")

    database = postgres(image=image, setup=setup)
    for _ in range(2):
        with database.start() as service, psycopg.connect(service.url) as connection:
            assert service.container.settings.image != "host"
            connection.execute("insert into item values ('x')")
            assert (1,) == connection.execute("select count(*) from item").fetchone()


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


def test_a_recipe_names_what_an_image_lacks(home, image):
    """An image of another server is refused with the program that it lacks."""
    from pytest_sandbox.services import redis

    with pytest.raises(ServiceError, match="redis-server or valkey-server is not there"):
        redis(image=image).start()

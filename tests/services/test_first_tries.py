"""What users of testcontainers and docker write first: the error has the right form."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from pytest_sandbox import ImageError, SettingsError
from pytest_sandbox.services import Service, kafka, mariadb, postgres, rabbitmq, redis, s3


@pytest.mark.parametrize("make", [redis, postgres, lambda: Service(["sleep", "9"])])
def test_a_service_is_started_before_it_is_used(make):
    """A service is no context manager and has no address: the error says what has."""
    with pytest.raises(TypeError, match=r"with service\.start\(\) as running"), make():
        pass
    for name in ("url", "host", "logs", "container"):
        with pytest.raises(AttributeError, match=rf"with service\.start\(\).*running\.{name}"):
            getattr(make(), name)
    with pytest.raises(AttributeError, match="has no attribute 'uri'"):
        make().uri  # noqa: B018


@pytest.mark.parametrize(
    ("name", "meant"),
    [("mem_limit", "memory"), ("environment", "env"), ("ports", "publish")],
)
def test_the_names_of_other_tools_are_understood(name, meant):
    """A setting by docker-py's name is refused with the name that it has here."""
    with pytest.raises(SettingsError, match=rf"did you mean {meant}\?"):
        redis(**{name: "1g"})


def migrate(db):
    """Do nothing."""


@pytest.mark.parametrize(
    ("make", "given", "form"),
    [
        (postgres, "postgres:16", r"postgres\(image='postgres:16'\), or postgres\(\) for the prog"),
        (redis, "redis:7", r"redis\(image='redis:7'\), or"),
        (mariadb, Path("/srv/root"), r"mariadb\(image='/srv/root'\)"),
        (rabbitmq, "rabbitmq:3", r"rabbitmq\(image='rabbitmq:3'\)"),
        (kafka, 9092, r"kafka\(port=9092\)$"),
        (s3, None, r"s3\(image=\.\.\.\)$"),
        (postgres, migrate, r"postgres\(setup=migrate\)$"),
        (redis, migrate, r"redis\(image=\.\.\.\)$"),
    ],
)
def test_an_image_by_position_is_refused_with_the_keyword(make, given, form):
    """As PostgresContainer("postgres:16"): the error has the call to write."""
    with pytest.raises(
        TypeError, match=rf"^{make.__name__}\(\) takes keyword arguments only: {form}"
    ):
        make(given)
    with pytest.raises(TypeError, match="keyword arguments only"):
        make(given, timeout=5)


def test_an_image_as_the_command_is_refused_with_the_keyword():
    """As DockerContainer("nginx:1.25")."""
    with pytest.raises(SettingsError, match=r"a list of words.*image='nginx:1\.25'"):
        Service("nginx:1.25")


def test_an_image_that_is_not_stored_is_named_with_the_command_that_fetches_it(home):
    """Nothing is fetched by itself, and nothing of this host is used instead."""
    for service in (redis(image="redis:0"), postgres(image="postgres:0"), Service(image="web:0")):
        with pytest.raises(ImageError, match=r"(redis|postgres|web):0.*pytest-sandbox pull"):
            service.start()


@pytest.mark.parametrize("make", [redis, postgres, mariadb, rabbitmq, kafka, s3])
def test_a_recipe_has_its_signature(make):
    """For help(), editors and documentation."""
    parameters = inspect.signature(make).parameters
    assert {"port", "settings"} <= parameters.keys()
    assert make.__doc__.startswith("Return ")

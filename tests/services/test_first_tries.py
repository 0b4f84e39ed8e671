"""What users of testcontainers and docker write first: the error has the right form."""

from __future__ import annotations

import pytest

from pytest_sandbox import SettingsError
from pytest_sandbox.services import Service, postgres, redis


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

"""Fixtures whose value is a running service (``Service.fixture()``), and its log in the report of a
failed test.

A service runs outside the container of a test. For a test inside, both are on one network of this
process, and a service of function scope is started here, before the test process is forked: the
fixture in the test process only returns it.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import pytest

from pytest_sandbox.errors import UnsupportedError
from pytest_sandbox.plugin import compat_fixtures, unsupported
from pytest_sandbox.plugin.stash import FRESH, IN_TEST_PROCESS, INSIDE
from pytest_sandbox.printable import TEXT, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_sandbox.container.network import Network
    from pytest_sandbox.settings.settings import Settings

__all__ = ["make_fixture", "sections", "start_for", "stop_for"]

#: The end of a log that a report shows.
_SHOWN_CHARACTERS = 64 << 10
_MARK = "pytest_sandbox_service"


class _Running(Protocol):
    name: str

    def logs(self) -> str: ...
    def close(self) -> None: ...


class _Service(Protocol):
    name: str

    def start_on(self, network: Network | None) -> _Running: ...
    def close(self) -> None: ...


class _Marked:
    """What a fixture's function has as an attribute."""

    def __init__(self, service: _Service, scope: str) -> None:
        self.service, self.scope = service, scope
        self.running: _Running | None = None  # of a scope above function, or outside


#: The running services of an item, started before its test process.
_STARTED = pytest.StashKey[dict[_Marked, "_Running"]]()
_NETWORK = pytest.StashKey["Network"]()
_CLEANED = pytest.StashKey[set[int]]()


def make_fixture(service: _Service, scope: str) -> Callable[..., Any]:
    """Return a fixture of this scope whose value is the running service."""
    marked = _Marked(service, scope)

    def running_service(request: pytest.FixtureRequest) -> Iterator[_Running]:
        item = request.node
        started = item.stash.get(_STARTED, {}) if scope == "function" else {}
        if marked in started:  # by the parent
            yield started[marked]
            return
        if scope == "function" and IN_TEST_PROCESS in item.stash:
            _refuse(request)
        is_used_inside = any(one.stash.get(INSIDE, False) for one in request.session.items)
        network = _network(request.config) if is_used_inside and scope != "function" else None
        with unsupported.as_test_result(request.config):
            try:
                marked.running = running = _start(request.config, service, network)
            except UnsupportedError as error:
                if not _is_inside(request):
                    raise
                _refuse(request, error)
        try:
            yield running
        finally:
            marked.running = None
            running.close()

    running_service.__doc__ = f"The running service {service.name}."
    setattr(running_service, _MARK, marked)
    decorate: Any = pytest.fixture(scope=scope)  # type: ignore[call-overload]
    made: Callable[..., Any] = decorate(running_service)
    return made


def _is_inside(request: pytest.FixtureRequest) -> bool:
    """Tell whether this is the process of a test, whatever the scope of the fixture."""
    if request.config.stash.get(FRESH, False):
        return True
    return any(IN_TEST_PROCESS in one.stash for one in request.session.items)


def _refuse(request: pytest.FixtureRequest, error: UnsupportedError | None = None) -> NoReturn:
    """Fail the test, also with ``sandbox_unsupported = skip``: the suite has to change, and not the
    host.
    """
    reason = "" if error is None else f" ({error})"
    pytest.fail(
        f"the service {request.fixturename!r} cannot start inside a container. Name the "
        "fixture as an argument of the test or of a fixture, not by getfixturevalue(). "
        "For tests that share a container (scope=), give the fixture a wider scope than theirs. "
        f"A test with fresh=True cannot use it: its fixtures of all scopes are inside.{reason}",
        pytrace=False,
    )


def _start(config: pytest.Config, service: _Service, network: Network | None) -> _Running:
    cleaned = config.stash.setdefault(_CLEANED, set())
    if id(service) not in cleaned:
        cleaned.add(id(service))
        config.add_cleanup(service.close)
    return service.start_on(network)


def _network(config: pytest.Config) -> Network:
    """Return the network of this process that services and tests are on."""
    if _NETWORK not in config.stash:
        from pytest_sandbox.container.network import Network

        config.stash[_NETWORK] = Network("services", subnet="172.30.0.0/16")
    return config.stash[_NETWORK]


def _marked(item: pytest.Item) -> list[_Marked]:
    """Return the services that the item uses."""
    found = [getattr(func, _MARK, None) for func in compat_fixtures.fixture_functions(item)]
    return [one for one in found if isinstance(one, _Marked)]


def start_for(item: pytest.Item, settings: Settings) -> Settings:
    """Start the services of function scope that a test inside uses; return the settings of its
    container, which is on the services' network unless its own settings name one.
    """
    marked = _marked(item)
    if not marked:
        return settings
    network = _network(item.config) if settings.network == "none" else None
    stop_for(item)
    started = item.stash[_STARTED] = {}
    with ExitStack() as opened:
        opened.callback(stop_for, item)
        for one in marked:
            if one.scope == "function":
                started[one] = _start(item.config, one.service, network)
        opened.pop_all()
    return settings if network is None else settings.replace(network=network)


def stop_for(item: pytest.Item) -> None:
    """Stop what :func:`start_for` has started."""
    with ExitStack() as closing:
        for running in item.stash.get(_STARTED, {}).values():
            closing.callback(running.close)
        if _STARTED in item.stash:
            del item.stash[_STARTED]


def sections(item: pytest.Item) -> list[tuple[str, str]]:
    """Return title and text of the log of each service that the item uses."""
    started = item.stash.get(_STARTED, {})
    found = [started.get(one) or one.running for one in _marked(item)]
    return [
        (f"service {one.name}", _shown(one.logs()))
        for one in dict.fromkeys(found)
        if one is not None
    ]


def _shown(log: str) -> str:
    text = printable(log.rstrip(), TEXT)
    left_out = len(text) - _SHOWN_CHARACTERS
    if left_out <= 0:
        return text or "it has no output"
    return f"... ({left_out} characters before)\n{text[left_out:]}"

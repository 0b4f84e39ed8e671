"""Fixtures whose value is a running service (``Service.fixture()``), and its log in the report of a
failed test.

A service runs outside the container of a test. For a test inside, both are on one network of this
process. A fixture that is set up in a test process returns the service that the parent has started
for it (outside_services.py); any other fixture starts its service itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import pytest

from pytest_sandbox.plugin import compat_fixtures, unsupported
from pytest_sandbox.plugin.stash import INSIDE
from pytest_sandbox.printable import TEXT, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_sandbox.container.network import Network
    from pytest_sandbox.settings.settings import Settings

__all__ = [
    "GIVEN",
    "STARTED",
    "Marked",
    "RunningService",
    "are_defined",
    "close_at_end",
    "make_fixture",
    "marked_fixtures",
    "network_of",
    "sections",
]

#: The end of a log that a report shows.
_SHOWN_CHARACTERS = 64 << 10
_MARK = "pytest_sandbox_service"


class RunningService(Protocol):
    """A running service, as the plugin sees it."""

    name: str

    @property
    def has_ended(self) -> bool:
        """Whether it has ended."""

    def await_ready(self) -> None:
        """Return once it is ready; close it if it will not be."""

    def describe(self) -> dict[str, Any]:
        """Return as data what another process needs."""

    def logs(self) -> str:
        """Return its log."""

    def close(self) -> None:
        """End it."""


class _Service(Protocol):
    name: str
    is_ahead: bool
    settings: Settings

    def begin(self, network: Network | None) -> RunningService: ...
    def start_on(self, network: Network | None) -> RunningService: ...
    def restored(self, described: dict[str, Any]) -> RunningService: ...
    def close(self) -> None: ...


class Marked:
    """What a fixture's function has as an attribute."""

    def __init__(self, service: _Service, scope: str) -> None:
        self.service, self.scope = service, scope
        self.running: RunningService | None = None  # that its fixture has started


#: On an item: the services that the parent has started for it, or in its test process has got.
STARTED = pytest.StashKey[dict[Marked, RunningService]]()
#: On the configuration, in a test process only: the services that the parent has started.
GIVEN = pytest.StashKey[dict[Marked, RunningService]]()
_NETWORK = pytest.StashKey["Network"]()
_CLEANED = pytest.StashKey[set[int]]()


#: Whether this process has such fixtures: most suites have none.
_defined: list[Marked] = []


def are_defined() -> bool:
    """Tell whether there may be fixtures whose value is a service."""
    return bool(_defined)


def make_fixture(service: _Service, scope: str) -> Callable[..., Any]:
    """Return a fixture of this scope whose value is the running service."""
    marked = Marked(service, scope)
    _defined.append(marked)

    def running_service(request: pytest.FixtureRequest) -> Iterator[RunningService]:
        __tracebackhide__ = True
        given = request.config.stash.get(GIVEN, None)
        if given is not None:  # this is a test process
            if marked not in given:
                _refuse(request)
            yield given[marked]
            return
        is_used_inside = any(one.stash.get(INSIDE, False) for one in request.session.items)
        network = network_of(request.config) if is_used_inside and scope != "function" else None
        with unsupported.as_test_result(request.config):
            close_at_end(request.config, service)
            marked.running = running = service.start_on(network)
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


def _refuse(request: pytest.FixtureRequest) -> NoReturn:
    """Fail the test, also with ``sandbox_unsupported = skip``: the suite has to change, and not the
    host.
    """
    pytest.fail(
        f"the service {request.fixturename!r} was not started: it runs outside of the test's "
        "container, and has to be started before the test enters that. Name the fixture as an "
        "argument of the test or of one of its fixtures, not by getfixturevalue().",
        pytrace=False,
    )


def close_at_end(config: pytest.Config, service: _Service) -> None:
    """Have the session's end close what a service starts in advance."""
    cleaned = config.stash.setdefault(_CLEANED, set())
    if id(service) not in cleaned:
        cleaned.add(id(service))
        config.add_cleanup(service.close)


def network_of(config: pytest.Config) -> Network:
    """Return the network of this process that services and tests are on."""
    if _NETWORK not in config.stash:
        from pytest_sandbox.container.network import Network

        config.stash[_NETWORK] = Network("services", subnet="172.30.0.0/16")
    return config.stash[_NETWORK]


def marked_fixtures(item: pytest.Item) -> dict[str, Marked]:
    """Return the services that the item uses, by a key which is the same in another process: the
    name of the fixture, and how many fixtures of the name come before.
    """
    found: dict[str, Marked] = {}
    for name, number, func in compat_fixtures.fixture_functions(item):
        marked = getattr(func, _MARK, None)
        if isinstance(marked, Marked):
            found[f"{name} {number}"] = marked
    return found


def sections(item: pytest.Item) -> list[tuple[str, str]]:
    """Return title and text of the log of each service that the item uses."""
    started = item.stash.get(STARTED, {})
    found = [started.get(one) or one.running for one in marked_fixtures(item).values()]
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

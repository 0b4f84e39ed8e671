"""What tests have tried to connect to, and could not: a section of each test's report, a summary at
the end of the session, and ``--sandbox-network-report=FILE``.

For a container with a list of destinations, the forwarder tells (launcher/egress.py), and the calls
of the test process add the lines (connection_calls.py). For others there are only these calls.
An xdist worker sends what it has to the controller, which prints and writes all.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_sandbox.errors import SandboxError
from pytest_sandbox.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_sandbox.container.container import Container
    from pytest_sandbox.plugin.report_channel import Receiver

__all__ = ["add_option", "add_section", "register", "take_blocked"]

_OPTION: Final = "--sandbox-network-report"
_NAME: Final = "sandbox-network-report"
_WORKER_KEY: Final = "sandbox_network_report"
_TITLE: Final = "blocked connections"
_MOST: Final = 10_000
_SHOWN: Final = 20
_NOT_ALLOWED: Final = "not allowed"
_ENDED: Final = "the forwarder has ended, so what was blocked is not known"


@dataclass(frozen=True, slots=True)
class _Attempt:
    """``port`` is None for a name that was only looked up; ``line`` is of the test's code."""

    test: str
    host: str
    port: int | None
    protocol: str
    program: str
    line: str
    reason: str
    count: int

    @property
    def target(self) -> str:
        """The host and the port, as the setting has them, if a setting can allow it."""
        return f"{self.host}:{self.port or 443}"

    @property
    def can_be_allowed(self) -> bool:
        """Whether an item of ``network=[...]`` allows it."""
        # Here, because a session without containers needs no parser.
        from pytest_sandbox.settings import destinations, parsers

        try:
            destinations.network([self.target])
        except parsers.RefusedError:  # a name of no valid form
            return False
        is_refused = self.reason == _NOT_ALLOWED or self.reason.startswith("no network")
        return is_refused and self.protocol != "udp"

    def describe(self) -> str:
        """Return the line of a report."""
        place = self.host if self.port is None else f"{self.host}:{self.port}"
        times = "once" if self.count == 1 else f"{self.count} times"
        by = f", by {self.program}" if self.program else ""
        at = f", at {self.line}" if self.line else ""
        what = {"udp": "UDP, ", "dns": "looked up, "}.get(self.protocol, "")
        return printable(f"{place} ({what}{times}{by}{at}): {self.reason}")


def add_option(group: pytest.OptionGroup) -> None:
    """Add the option."""
    group.addoption(
        _OPTION,
        metavar="FILE",
        help="write what tests inside have tried to connect to, and could not, as JSON",
    )


def register(config: pytest.Config) -> None:
    """Register the plugin. Raises :class:`pytest.UsageError` if the file cannot be written."""
    path = config.getoption("sandbox_network_report")
    if path is not None and not hasattr(config, "workerinput"):
        try:
            Path(path).write_text("[]\n", encoding="utf-8")
        except OSError as error:
            raise pytest.UsageError(
                f"{_OPTION}={path}: not a file that can be written ({error.strerror})"
            ) from None
    config.pluginmanager.register(_NetworkReport(config, path), _NAME)


def take_blocked(container: Container) -> list[dict[str, Any]] | None:
    """Return what the container's forwarder has refused since the last call; None without one.

    Called before another test may begin in the container.
    """
    forwarder = container.handle.egress
    if forwarder is None:
        return None
    try:
        return forwarder.attempts(forget=True)
    except SandboxError:  # it was killed
        return [
            {
                "host": "unknown",
                "port": None,
                "protocol": "tcp",
                "program": "",
                "reason": _ENDED,
                "count": 1,
            }
        ]


def add_section(
    item: pytest.Item,
    container: Container,
    blocked: list[dict[str, Any]] | None,
    receiver: Receiver | None,
    reports: list[pytest.TestReport],
) -> None:
    """Add the section to a test's report of the call, else to its last one.

    ``blocked`` is from :func:`take_blocked`. ``receiver`` has the calls of a test inside; None for
    a test that holds the container.
    """
    sent = receiver.of_kind("connections") if receiver else ()
    calls = [call for calls in sent for call in calls]
    if blocked is not None:
        found = list(_forwarded(item.nodeid, blocked, calls))
    else:
        found = list(_called(item.nodeid, container, calls)) if calls else []
    if found and reports:
        last = next((one for one in reversed(reports) if one.when == "call"), reports[-1])
        last.sections.append((_TITLE, _text(found)))
        plugin: Any = item.config.pluginmanager.get_plugin(_NAME)
        plugin.add(found)


def _forwarded(test: str, blocked: list[dict[str, Any]], calls: list[Any]) -> Iterable[_Attempt]:
    """Yield what a forwarder has refused, with lines of the test's code where they are known."""
    for one in blocked:
        lines = {
            line
            for host, port, _protocol, line, _count in calls
            if line and host == one["host"] and port in {one["port"], None}
        }
        yield _Attempt(test=test, line=", ".join(sorted(lines)), **one)


def _called(test: str, container: Container, calls: list[Any]) -> Iterable[_Attempt]:
    """Yield the calls of a test process that cannot have reached anything."""
    endpoint = container.handle.endpoint
    reason = "no network" if endpoint is None else "no network but that of its containers"
    for host, port, protocol, line, count in calls:
        if endpoint is None or not _is_on(endpoint.network, host):
            yield _Attempt(test, host, port, protocol, "", line, reason, count)


def _is_on(network: Any, host: str) -> bool:
    """Return whether a host is an address or a name of a :class:`Network`."""
    from ipaddress import IPv4Address, IPv4Network

    try:
        return IPv4Address(host) in IPv4Network(network.subnet)
    except ValueError:
        return host in {name.lower() for name in network.addresses}


def _text(attempts: list[_Attempt]) -> str:
    lines = [one.describe() for one in attempts[:_SHOWN]]
    if len(attempts) > _SHOWN:
        lines.append(f"... and {len(attempts) - _SHOWN} more")
    setting = _setting(attempts[:_SHOWN])
    return "\n".join([*lines, *([f"{setting} allows it."] if setting else [])])


def _setting(attempts: Iterable[_Attempt]) -> str:
    """Return the setting that allows what can be allowed, in the form of Python and of TOML."""
    targets = sorted({one.target for one in attempts if one.can_be_allowed})
    items = ", ".join(f'"{printable(target)}"' for target in targets)
    return f"network=[{items}]" if items else ""


class _NetworkReport:
    """The plugin: it collects the attempts of a session."""

    def __init__(self, config: pytest.Config, path: str | None) -> None:
        self._config = config
        self._path = path
        self._attempts: list[_Attempt] = []

    def add(self, attempts: list[_Attempt]) -> None:
        """Add the attempts of one test."""
        self._attempts += attempts[: _MOST - len(self._attempts)]

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Add what a worker of xdist has."""
        output = getattr(node, "workeroutput", None) or {}
        self.add([_Attempt(**one) for one in output.get(_WORKER_KEY, ())])

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """Send the attempts of a worker; write the file."""
        found = [asdict(one) for one in self._attempts]
        output: Any = getattr(self._config, "workeroutput", None)
        if output is not None:
            output[_WORKER_KEY] = found
        elif self._path is not None:
            with open(self._path, "w", encoding="utf-8") as file:
                json.dump(found, file, indent=2)
                file.write("\n")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print how many tests are affected, and the setting that allows everything."""
        if not self._attempts:
            return
        terminalreporter.section(_TITLE)
        tests = len({one.test for one in self._attempts})
        hosts = len({one.host for one in self._attempts})
        terminalreporter.line(
            f"{tests} test{'s' * (tests > 1)} tried to reach {hosts} host{'s' * (hosts > 1)} "
            "outside of their containers."
        )
        others = {replace(one, test="", count=1, line="") for one in self._attempts}
        for one in sorted(others, key=lambda one: (one.host, one.port or 0)):
            if not one.can_be_allowed:
                terminalreporter.line(one.describe())
        if setting := _setting(self._attempts):
            terminalreporter.line(f"This allows them: {setting}")

"""What a container can be waited for, as values: ``Port(5432) & Log("ready")``."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pytest_sandbox.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping

    #: Yields what to send, and is sent what was received; it returns when the server is ready.
    Conversation = Generator[bytes, bytes, None]

__all__ = [
    "AllOf",
    "AnyOf",
    "Command",
    "Condition",
    "File",
    "Http",
    "Log",
    "Port",
    "Query",
    "UnexpectedAnswer",
    "healthcheck",
    "needs_log",
    "of_keywords",
]

__tracebackhide__ = True  # pytest shows the line of the test; --full-trace shows all

_MAX_PORT = 65535
_PORT_FORM = f"a TCP port, 1 to {_MAX_PORT}"
_HTTP_FORM = (
    'a path of printable ASCII such as "/health" with port= (default: 80), or a URL such as '
    '"http://localhost:8000/health"'
)
_STATUS = re.compile("[0-9]{3}")  # RFC 9112, section 4
#: Seconds for one attempt of a command, and of an image's HEALTHCHECK: docker's default.
_COMMAND_TIMEOUT = 30.0
_NANOSECONDS = 1e9


class Condition:
    """A condition; ``a & b`` holds once both have held, ``a | b`` once one of them has."""

    __slots__ = ()

    def __and__(self, other: Condition) -> Condition:
        return AllOf((*_members(self, AllOf), *_members(_checked(other), AllOf)))

    def __or__(self, other: Condition) -> Condition:
        return AnyOf((*_members(self, AnyOf), *_members(_checked(other), AnyOf)))


@dataclass(frozen=True, slots=True)
class AllOf(Condition):
    """Every one of the conditions."""

    conditions: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class AnyOf(Condition):
    """At least one of the conditions."""

    conditions: tuple[Condition, ...]


def _members(condition: Condition, kind: type[AllOf | AnyOf]) -> tuple[Condition, ...]:
    return condition.conditions if isinstance(condition, kind) else (condition,)


def _checked(value: object) -> Condition:
    if not isinstance(value, Condition):
        raise SettingsError("ready", value, "Port, Log, Http, Command or File, joined by | and &")
    return value


@dataclass(frozen=True, slots=True)
class Port(Condition):
    """A TCP socket inside listens on a port, on any address."""

    number: int

    def __post_init__(self) -> None:
        _check_port(self.number)


@dataclass(frozen=True, slots=True)
class Log(Condition):
    """The kept output has a text, or a match of a compiled regular expression within a line."""

    pattern: str | re.Pattern[str]

    def __post_init__(self) -> None:
        given: object = self.pattern
        if not isinstance(given, str | re.Pattern) or not given:
            raise SettingsError("log", given, "a text, or a compiled regular expression")

    @property
    def compiled(self) -> re.Pattern[str]:
        """The regular expression to search for."""
        given = self.pattern
        return re.compile(re.escape(given)) if isinstance(given, str) else given


@dataclass(frozen=True, slots=True)
class Http(Condition):
    """``GET path`` on a port of the container's loopback is answered with one of ``status``.

    ``port`` is 80 by default; ``status`` is one status code or several (default: 200 to 399).
    """

    path: str
    port: int = 80
    status: int | Iterable[int] = range(200, 400)

    def __post_init__(self) -> None:
        _check_port(self.port)
        path: object = self.path
        if not isinstance(path, str) or not re.fullmatch(r"/[!-~]*", path):
            raise SettingsError("http", path, _HTTP_FORM)

    @property
    def query(self) -> Query:
        """The request, as a conversation."""
        return Query(self.port, self._ask, f"GET {self.path}")

    def _ask(self) -> Conversation:
        answer = yield (
            f"GET {self.path} HTTP/1.1\r\nHost: localhost:{self.port}\r\n"
            "User-Agent: pytest-sandbox\r\nAccept: */*\r\nConnection: close\r\n\r\n"
        ).encode()
        while b"\n" not in answer:
            answer += yield b""
        line = answer.partition(b"\n")[0].decode(errors="replace").strip()
        words = line.split()
        is_status = len(words) > 1 and words[0].startswith("HTTP/") and _STATUS.fullmatch(words[1])
        if not is_status or not self.accepts(int(words[1])):
            raise UnexpectedAnswer(line[:200])

    def accepts(self, status: int) -> bool:
        """Return whether the status of an answer meets the condition."""
        return status == self.status if isinstance(self.status, int) else status in self.status


@dataclass(frozen=True, slots=True)
class Command(Condition):
    """A command inside exits with status 0.

    It is started again a moment after it has failed, and killed after ``timeout`` seconds.
    """

    args: tuple[str, ...]
    timeout: float

    def __init__(
        self, args: str | Iterable[str | os.PathLike[str]], timeout: float = _COMMAND_TIMEOUT
    ) -> None:
        words = (
            ("/bin/sh", "-c", args)
            if isinstance(args, str)
            else tuple(os.fspath(one) for one in args)
        )
        if not words or not words[-1]:
            raise SettingsError("run", args, 'a command, such as ["pg_isready"]')
        object.__setattr__(self, "args", words)
        object.__setattr__(self, "timeout", timeout)


class UnexpectedAnswer(Exception):
    """A server has answered, but not as one that is ready does."""


@dataclass(frozen=True, slots=True)
class Query(Condition):
    """A server on a TCP port of the container's loopback answers a query.

    ``conversation`` yields what to send (b"" to receive more first) and is sent what was received;
    it returns if the server is ready, and raises :class:`UnexpectedAnswer` if it is not.
    ``name`` is what error messages call the query.
    """

    port: int
    conversation: Callable[[], Conversation]
    name: str


@dataclass(frozen=True, slots=True)
class File(Condition):
    """A path inside exists."""

    path: str | os.PathLike[str]


def _check_port(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX_PORT:
        raise SettingsError("port", value, _PORT_FORM)


def healthcheck(config: Mapping[str, Any]) -> Condition | None:
    """Return an image's HEALTHCHECK as a condition; None if it has none.

    Its timeout is kept. Its interval is not: the command is started again a moment after it has
    failed, since a test waits for it.
    """
    check = config.get("Healthcheck") or {}
    kind, *words = check.get("Test") or ["NONE"]
    timeout = (check.get("Timeout") or 0) / _NANOSECONDS or _COMMAND_TIMEOUT
    if kind == "CMD-SHELL" and words:
        return Command([*(config.get("Shell") or ("/bin/sh", "-c")), words[0]], timeout)
    return Command(words, timeout) if kind == "CMD" and words else None


def needs_log(condition: Condition) -> bool:
    """Return whether a condition, or one of its parts, searches the output."""
    if isinstance(condition, AllOf | AnyOf):
        return any(map(needs_log, condition.conditions))
    return isinstance(condition, Log)


def of_keywords(
    *,
    port: int | None,
    log: str | re.Pattern[str] | None,
    http: str | Http | None,
    run: str | Iterable[str] | None,
    file: str | os.PathLike[str] | None,
) -> list[Condition]:
    """Return a condition for each keyword of ``wait_for`` that is given.

    Raises :class:`SettingsError`.
    """
    found: list[Condition] = []
    if port is not None and not isinstance(http, str):
        found.append(Port(port))
    if log is not None:
        found.append(Log(log))
    if http is not None:
        found.append(http if isinstance(http, Http) else _http(http, port))
    if run is not None:
        found.append(Command(run))
    if file is not None:
        found.append(File(file))
    return found


def _http(text: str, port: int | None) -> Http:
    """Return the condition for a path or a URL."""
    try:
        url = urlsplit(text)
        given = url.port
    except ValueError:
        raise SettingsError("http", text, _HTTP_FORM) from None
    is_local = url.scheme == "http" and url.hostname in {"localhost", "127.0.0.1", "::1"}
    if (url.scheme or url.netloc) and (not is_local or port not in {None, given}):
        raise SettingsError("http", text, _HTTP_FORM)
    path = (url.path or "/") + (f"?{url.query}" if url.query else "")
    return Http(path, given or port or 80)

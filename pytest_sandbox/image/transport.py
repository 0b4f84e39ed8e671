r"""HTTP requests with limits on their destination, duration and size.

Every address is parsed once, by urllib3, and its result is what is connected to: two parsers that
read ``http://evil\@localhost/`` differently would send credentials to ``evil``.
"""

from __future__ import annotations

import contextlib
import ipaddress
import math
import os
import re
import socket
import ssl
import threading
import time
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Self

from pytest_sandbox.errors import ImageError
from pytest_sandbox.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import urllib3

__all__ = [
    "Address",
    "MinimumRate",
    "Response",
    "Transport",
    "is_loopback",
    "network_errors",
    "parse_address",
]

_LONGEST_ADDRESS: Final = 16 << 10
#: RFC 3986 without the backslash and the other characters that parsers read differently.
_ADDRESS: Final = re.compile(r"https?://[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+\Z", re.IGNORECASE)
_PORTS: Final = {"http": 80, "https": 443}
_CERTIFICATES: Final = ("/etc/docker/certs.d", "/etc/containers/certs.d")
_HEADERS: Final = {"User-Agent": "pytest-sandbox", "Accept-Encoding": "identity"}
_CONNECT_SECONDS: Final = 15.0
_HEAD_SECONDS: Final = 60.0
_STALL_SECONDS: Final = 20.0
_WATCH_SECONDS: Final = 0.1
_SMALL_BODY: Final = 64 << 10
_FIRST_READ: Final = 16 << 10
_LARGEST_READ: Final = 128 << 10
_GRACE_SECONDS: Final = 10.0
_LEAST_RATE: Final = 1 << 10  # bytes a second
_LEAST_OVERALL_RATE: Final = 4 << 10


@dataclass(frozen=True, slots=True)
class Address:
    """An absolute http or https address: ``host`` in lower case, ``target`` the path and query."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port (RFC 6454), to which credentials belong."""
        return (self.scheme, self.host, self.port)

    @property
    def is_private(self) -> bool:
        """Whether requests cannot be read on the network: HTTPS, or loopback."""
        return self.scheme == "https" or is_loopback(self.host)

    @property
    def origin_text(self) -> str:
        """The origin as text, without path and query, which may contain a signature."""
        return f"{self.scheme}://{self.host}:{self.port}"

    def join(self, location: str) -> Address:
        """Resolve a Location header (RFC 3986, 5.2, without dot segments)."""
        if "://" in location.partition("?")[0]:
            return parse_address(location)
        if location.startswith("//"):
            return parse_address(f"{self.scheme}:{location}")
        above = self.target.partition("?")[0].rpartition("/")[0]
        target = location if location.startswith("/") else f"{above}/{location}"
        return parse_address(f"{self.origin_text}{target}")


def parse_address(text: str) -> Address:
    """Parse an absolute address. Raises ImageError if it is malformed or contains credentials."""
    from urllib3.exceptions import LocationParseError
    from urllib3.util import parse_url

    shown = printable(text[:200])
    if len(text) > _LONGEST_ADDRESS or not _ADDRESS.match(text):
        raise ImageError(f"{_redacted(shown)!r} is not an http or https address")
    try:
        parts = parse_url(text)
    except (LocationParseError, ValueError):
        raise ImageError(f"{_redacted(shown)!r} is not an http or https address") from None
    if parts.auth is not None or "@" in (parts.netloc or ""):
        raise ImageError(
            f"{_redacted(shown)!r} contains credentials, which are not accepted in addresses"
        )
    if not parts.host or not parts.scheme:
        raise ImageError(f"{shown!r} has no host")
    port = _PORTS[parts.scheme] if parts.port is None else parts.port
    return Address(parts.scheme, parts.host, port, parts.request_uri)


def _redacted(text: str) -> str:
    """Remove credentials, and the query, which may contain a signature."""
    return re.sub(r"//.*@", "//***@", text).partition("?")[0]


def is_loopback(host: str) -> bool:
    """Tell whether ``host[:port]`` is this machine, where plain HTTP cannot be intercepted."""
    name = host.rpartition(":")[0] if re.search(r"[^:\]]:[0-9]+\Z|\]:[0-9]+\Z", host) else host
    try:
        return name == "localhost" or ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


class Guard:
    """The deadline of one exchange: its socket is shut down after ``ends`` (monotonic seconds)."""

    def __init__(self, ends: float) -> None:
        self.ends = ends
        self.sock: Any = None
        self.is_cut = False
        self._handle: socket.socket | None = None
        self._lock = threading.Lock()

    def attach(self, sock: Any) -> None:
        """Guard a socket by a duplicate, which stays valid when it is wrapped in TLS or closed."""
        handle = socket.socket(fileno=os.dup(sock.fileno()))
        with self._lock:
            old, self._handle = self._handle, handle
        if old:
            old.close()
        if self.is_cut:
            self.cut()

    def cut(self) -> None:
        """End the exchange: reads return the end of the stream, writes fail."""
        self.is_cut = True
        with self._lock, contextlib.suppress(OSError):
            if self._handle:
                self._handle.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with self._lock:
            if self._handle:
                self._handle.close()
            self._handle = None


class MinimumRate:
    """The minimum transfer rate of a blob, for each read and over all its requests."""

    def __init__(self, size: int) -> None:
        self.left = _HEAD_SECONDS + size / _LEAST_OVERALL_RATE
        self.amount = _FIRST_READ

    def timeout(self) -> float:
        """Return the seconds within which the next ``amount`` bytes must arrive."""
        return min(self.left, _GRACE_SECONDS + self.amount / _LEAST_RATE)

    def record(self, seconds: float) -> None:
        """Record the duration of one read; after a fast one, the next requests more bytes."""
        self.left -= seconds
        self.amount = min(self.amount * 2, _LARGEST_READ) if seconds < 1 else _FIRST_READ


@dataclass(eq=False)
class Response:
    """One response, whose body is read with limits.

    ``is_same_origin`` tells that no redirect led to another origin.
    """

    raw: urllib3.BaseHTTPResponse
    guard: Guard
    transport: Transport
    where: str
    is_same_origin: bool = True
    headers: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.headers = self.raw.headers

    @property
    def status(self) -> int:
        return self.raw.status

    def pieces(self, rate: MinimumRate) -> Iterator[bytes]:
        """Yield the body. Raises a network error if it stalls, ImageError if it is too slow."""
        is_whole = False
        if self.guard.sock is not None:
            self.guard.sock.settimeout(_STALL_SECONDS)
        try:
            while True:
                data = self._read(rate)
                if not data:
                    break
                yield data
            is_whole = True
        finally:
            self._finish(reusable=is_whole)

    def _read(self, rate: MinimumRate) -> bytes:
        begun = time.monotonic()
        self.guard.ends = begun + rate.timeout()
        try:
            data = self.raw.read(rate.amount, decode_content=False)
        except Exception:
            self.transport.check(self)
            raise
        finally:
            self.guard.ends = math.inf  # extraction between two reads has no deadline
            rate.record(time.monotonic() - begun)
        self.transport.check(self)
        return data

    def document(self, limit: int) -> bytes:
        """Return the whole body. Raises ImageError if it is longer than ``limit`` bytes."""
        data = bytearray()
        pieces = self.pieces(MinimumRate(limit))
        for piece in pieces:
            data += piece
            if len(data) > limit:
                pieces.close()  # type: ignore[attr-defined] # a generator
                raise ImageError(f"{self.where} sent a document of more than {limit} bytes")
        return bytes(data)

    def discard(self) -> None:
        """Discard the body; a small one is read, so that the connection can be reused."""
        length = self.headers.get("Content-Length", "")
        if re.fullmatch(r"[0-9]{1,9}", length) and int(length) <= _SMALL_BODY:
            with contextlib.suppress(ImageError, *network_errors()):
                self.document(_SMALL_BODY)
        self.close()

    def close(self) -> None:
        """Close the response and its connection."""
        self._finish(reusable=False)

    def _finish(self, *, reusable: bool) -> None:
        self.transport.unregister(self.guard)
        # A pool that is closed by now would leak the connection.
        self.raw.release_conn() if reusable else self.raw.close()


class Transport:
    """The connections of one pull; thread-safe. The end of the context closes them.

    When ``stopping`` is set, every exchange ends within 0.1 s.
    """

    def __init__(self, registry: str, stopping: threading.Event) -> None:
        self._registry = registry
        self._stopping = stopping
        self._managers: dict[bool, urllib3.PoolManager] = {}
        self._guards: set[Guard] = set()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._watcher: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        if self._watcher:
            self._watcher.join()
        for manager in self._managers.values():
            manager.clear()

    def request(
        self, method: str, address: Address, headers: Mapping[str, str], body: bytes | None = None
    ) -> Response:
        """Send one request once, without following redirects.

        Raises :func:`network_errors`, and ImageError if the response's header is too slow.
        """
        why = f"{address.origin_text} did not respond within {_HEAD_SECONDS:.0f} s"
        guard = Guard(time.monotonic() + _HEAD_SECONDS)
        self._register(guard)
        pool = self._manager(address.host).connection_from_host(
            address.host, address.port, address.scheme
        )
        _current.guard = guard
        try:
            raw = pool.urlopen(
                method,
                address.target,
                body,
                {**_HEADERS, **headers},
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
        except BaseException as error:
            self.unregister(guard)
            self._raise_if_cut(guard, why, error)
            raise
        finally:
            _current.guard = None
        guard.ends = math.inf
        response = Response(raw, guard, self, address.origin_text)
        if guard.is_cut or self._stopping.is_set():  # the header looks complete
            response.close()
            self._raise_if_cut(guard, why)
        return response

    def check(self, response: Response) -> None:
        """Raise ImageError if the exchange was ended by its guard, which looks like a closed
        connection.
        """
        self._raise_if_cut(
            response.guard, f"{response.where} sends less than {_LEAST_RATE} bytes per second"
        )

    def _raise_if_cut(self, guard: Guard, why: str, error: BaseException | None = None) -> None:
        if self._stopping.is_set():
            raise ImageError("the pull was interrupted") from error
        if guard.is_cut:
            raise ImageError(f"{why}: it is too slow. Try again later.") from error

    def unregister(self, guard: Guard) -> None:
        with self._lock:
            self._guards.discard(guard)
        guard.close()

    def _register(self, guard: Guard) -> None:
        with self._lock:
            self._guards.add(guard)
            if self._watcher is None:
                self._watcher = threading.Thread(
                    target=self._watch, name="pytest-sandbox-deadlines", daemon=True
                )
                self._watcher.start()

    def _watch(self) -> None:
        while not self._ended.wait(_WATCH_SECONDS):
            with self._lock:
                guards = list(self._guards)
            now = math.inf if self._stopping.is_set() else time.monotonic()
            for guard in guards:
                if guard.ends < now or (now == math.inf and not guard.is_cut):
                    guard.cut()

    def _manager(self, host: str) -> urllib3.PoolManager:
        from urllib.request import getproxies, proxy_bypass

        proxy = getproxies().get("https")
        is_direct = not proxy or is_loopback(host) or bool(proxy_bypass(host))
        with self._lock:
            if is_direct not in self._managers:
                self._managers[is_direct] = _manager(None if is_direct else proxy, self._registry)
            return self._managers[is_direct]


def _manager(proxy: str | None, registry: str) -> urllib3.PoolManager:
    module = _urllib3()
    options: dict[str, Any] = {
        "timeout": module.Timeout(connect=_CONNECT_SECONDS, read=_HEAD_SECONDS),
        "maxsize": 8,
        "ssl_context": _trust(registry),
    }
    made: urllib3.PoolManager = (
        module.ProxyManager(proxy, **options) if proxy else module.PoolManager(**options)
    )
    made.pool_classes_by_scheme = _guarded_pools()
    return made


def _urllib3() -> Any:
    try:
        import urllib3
    except ImportError:
        raise ImageError(
            "pulling images needs urllib3. Run: pip install 'pytest-sandbox[images]'"
        ) from None
    return urllib3


#: The guard of the exchange that this thread has started: urllib3 has no argument for it.
_current = threading.local()


@cache
def _guarded_pools() -> dict[str, Any]:
    """Return urllib3 pools whose connections attach their sockets to the thread's guard."""
    from urllib3.connection import HTTPConnection, HTTPSConnection
    from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

    class Guarded:
        sock: Any

        def _new_conn(self) -> Any:
            sock = super()._new_conn()  # type: ignore[misc] # a mixin for urllib3
            _current.guard.attach(sock)
            return sock

        def request(self, *args: Any, **keywords: Any) -> None:
            if self.sock is not None:  # a reused connection
                _current.guard.attach(self.sock)
                self.sock.settimeout(_HEAD_SECONDS)
            super().request(*args, **keywords)  # type: ignore[misc]
            _current.guard.sock = self.sock

    class Plain(Guarded, HTTPConnection):
        pass

    class Encrypted(Guarded, HTTPSConnection):
        pass

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class EncryptedPool(HTTPSConnectionPool):
        ConnectionCls = Encrypted

    return {"http": PlainPool, "https": EncryptedPool}


def _trust(host: str) -> ssl.SSLContext:
    """Return a TLS context that trusts the system's certificate authorities (or $SSL_CERT_FILE),
    and those in docker's and podman's certs.d for this registry.
    """
    context = ssl.create_default_context()
    for base in _CERTIFICATES:
        directory = os.path.join(base, host)
        if os.path.isdir(directory):
            for name in sorted(os.listdir(directory)):
                if name.endswith(".crt"):
                    context.load_verify_locations(os.path.join(directory, name))
    return context


def network_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions of urllib3 and sockets for failures of a network or server."""
    return (_urllib3().exceptions.HTTPError, OSError)

"""A minimal registry in memory, whose responses a test can replace."""

from __future__ import annotations

import json
import re
import socket
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from registries import reply, serving
from tarballs import digest_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tarballs import Made

    Hook = Callable[[BaseHTTPRequestHandler], Any]


@dataclass
class Asked:
    """One request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""

    def __contains__(self, text: str) -> bool:
        return text in f"{self.method} {self.path} {self.headers} {self.body!r}"


@dataclass
class Fake:
    """A registry with images by ``repository:tag``.

    Each hook gets the handler of each request, and returns a true value if it sent a response.
    """

    images: dict[str, Made] = field(default_factory=dict)
    hooks: list[Hook] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    host: str = ""

    def add(self, name: str, made: Made) -> str:
        """Add an image and return its reference."""
        self.images[name] = made
        return f"{self.host}/{name}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        if any(hook(handler) for hook in list(self.hooks)):
            return
        match = re.fullmatch(r"/v2/(.+)/(manifests|blobs)/(.+)", handler.path)
        data = self._found(*match.groups()) if match else None
        if data is None:
            reply(handler, 404)
            return
        media = json.loads(data)["mediaType"] if match and match[2] == "manifests" else "x/y"
        start = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        part = data[int(start[1]) :] if start else data
        headers = {"Content-Type": media, "Docker-Content-Digest": digest_of(data)}
        if handler.command == "HEAD":
            headers["Content-Length"], part = str(len(data)), b""
        reply(handler, 206 if start else 200, part, **headers)

    def _found(self, repository: str, what: str, wanted: str) -> bytes | None:
        for name, made in self.images.items():
            data = json.dumps(made.manifest).encode()
            if what == "blobs" and wanted in made.blobs:
                return made.blobs[wanted]
            if what == "manifests" and (
                name == f"{repository}:{wanted}" or digest_of(data) == wanted
            ):
                return data
        return None


@contextmanager
def fake_registry(*hooks: Hook) -> Iterator[Fake]:
    """Run a registry on a free port of loopback."""
    fake = Fake(hooks=list(hooks))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fake.asked.append(Asked(self.command, self.path, dict(self.headers), body))
            fake.answer(self)

        do_HEAD = do_POST = do_GET  # noqa: N815 - http.server's names

        def log_message(self, *_args: object) -> None:
            pass

    with serving(Handler) as fake.host:
        yield fake


def challenge(text: str) -> Hook:
    """Return a hook that responds with 401 to requests without credentials."""

    def hook(handler: BaseHTTPRequestHandler) -> bool:
        if handler.headers.get("Authorization") or not handler.path.startswith("/v2/"):
            return False
        return reply(handler, 401, WWW_Authenticate=text)

    return hook


def on(part: str, status: int, data: bytes = b"", **headers: str) -> Hook:
    """Return a hook that responds to requests with ``part`` in their path."""
    return lambda handler: part in handler.path and reply(handler, status, data, **headers)


def endless(status: int, piece: bytes = b"a" * 65536, **headers: str) -> Hook:
    """Return a hook with an endless response: it writes until the client closes the connection."""

    def hook(handler: BaseHTTPRequestHandler) -> bool:
        handler.send_response(status)
        for key, value in headers.items():
            handler.send_header(key.replace("_", "-"), value)
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.close_connection = True
        while True:  # raises when the client has closed the connection
            handler.wfile.write(piece)

    return hook


def dripping(data: bytes) -> Hook:
    """Return a hook that sends a blob one byte at a time, until the client closes the
    connection.
    """

    def hook(handler: BaseHTTPRequestHandler) -> bool:
        if "/blobs/" not in handler.path:
            return False
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.close_connection = True
        handler.connection.settimeout(0.05)
        for at in range(len(data)):
            handler.wfile.write(data[at : at + 1])
            try:
                if not handler.connection.recv(1):  # b"" when the client has closed it
                    break
            except socket.timeout:  # noqa: UP041 - what a socket raises
                continue
        return True

    return hook

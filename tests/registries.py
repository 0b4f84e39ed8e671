"""Registries on loopback: Debian's docker-registry, open or behind a login, and a proxy before it
that records and falsifies.
"""

from __future__ import annotations

import base64
import json
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from tarballs import digest_of

from bench.docker_registry import docker_registry

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import trustme
    from tarballs import Made


@dataclass
class Running:
    """A registry that listens: its name in references, and the directory of its blobs."""

    host: str
    directory: Path

    def blob(self, digest: str) -> Path:
        """The file in which the registry keeps a blob."""
        digits = digest.removeprefix("sha256:")
        return self.directory / "docker/registry/v2/blobs/sha256" / digits[:2] / digits / "data"


@contextmanager
def registry(directory: Path, **sections: Any) -> Iterator[Running]:
    """Start Debian's docker-registry with its blobs in *directory*; *sections* are added to its
    configuration.
    """
    config_file = directory.with_name(f"{directory.name}-{time.monotonic_ns()}.yml")
    with docker_registry(directory, config_file, **sections) as host:
        yield Running(host, directory)


def send(method: str, url: str, data: bytes = b"", **headers: str) -> Any:
    request = urllib.request.Request(
        url, data, {key.replace("_", "-"): value for key, value in headers.items()}, method=method
    )
    return urllib.request.urlopen(request)


def push_blob(host: str, repository: str, data: bytes) -> None:
    with send("POST", f"http://{host}/v2/{repository}/blobs/uploads/") as answer:
        where = answer.headers["Location"]
    joint = "&" if "?" in where else "?"
    send(
        "PUT",
        f"{where}{joint}digest={digest_of(data)}",
        data,
        Content_Type="application/octet-stream",
    ).close()


def push_manifest(host: str, repository: str, tag: str, document: dict[str, Any]) -> dict[str, Any]:
    data = json.dumps(document).encode()
    send(
        "PUT",
        f"http://{host}/v2/{repository}/manifests/{tag}",
        data,
        Content_Type=document["mediaType"],
    ).close()
    return {"mediaType": document["mediaType"], "digest": digest_of(data), "size": len(data)}


def push(host: str, name: str, made: Made) -> dict[str, Any]:
    """Push an image under ``repository:tag``; returns its descriptor."""
    repository, _, tag = name.partition(":")
    for described in (made.manifest["config"], *made.manifest["layers"]):
        push_blob(host, repository, made.blobs[described["digest"]])
    return push_manifest(host, repository, tag, made.manifest)


@dataclass
class Proxy:
    """A server before a registry: what it was asked, and what it does instead of passing a request
    on.

    Each of ``faults`` gets the handler of each request, and says by True that it has answered.
    """

    upstream: str
    host: str = ""
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    faults: list[Callable[[BaseHTTPRequestHandler], bool]] = field(default_factory=list)

    def asked(self, part: str = "") -> list[str]:
        """The requests so far, as "METHOD PATH", with *part* in the path."""
        return [f"{method} {path}" for method, path, _ in self.requests if part in path]


def handler_of(proxy: Proxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            proxy.requests.append((self.command, self.path, dict(self.headers)))
            if not any(fault(self) for fault in list(proxy.faults)):
                self.forward()

        do_HEAD = do_GET  # noqa: N815 - http.server's name

        def forward(self) -> None:
            headers = {
                key: value
                for key, value in self.headers.items()
                if key.lower() not in ("host", "connection")
            }
            request = urllib.request.Request(
                f"http://{proxy.upstream}{self.path}", None, headers, method=self.command
            )
            try:
                answer = urllib.request.urlopen(request)
            except urllib.error.HTTPError as error:
                answer = error
            with answer:
                reply(self, answer.status, answer.read(), **dict(answer.headers.items()))

        def log_message(self, *_args: object) -> None:
            pass

    return Handler


def reply(handler: BaseHTTPRequestHandler, status: int, data: bytes = b"", **headers: str) -> bool:
    """Answer a request; returns True, as a fault does that has answered."""
    handler.send_response(status)
    given = {key.replace("_", "-"): value for key, value in headers.items()}
    for key, value in given.items():
        if key.lower() not in ("transfer-encoding", "connection", "date", "content-length"):
            handler.send_header(key, value)
    handler.send_header(
        "Content-Length",
        given.get("Content-Length", str(len(data)))
        if handler.command == "HEAD"
        else str(len(data)),
    )
    handler.end_headers()
    handler.wfile.write(data)
    return True


@contextmanager
def serving(
    handler: type[BaseHTTPRequestHandler], context: ssl.SSLContext | None = None
) -> Iterator[str]:
    """An HTTP server on a free port of loopback; yields its host and port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    # a broken connection is what some tests are about
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def proxy(upstream: str) -> Iterator[Proxy]:
    one = Proxy(upstream)
    with serving(handler_of(one)) as host:
        one.host = host
        yield one


class TokenServer:
    """Gives tokens as docker's token specification says: to anybody, or only to one user; signed
    for docker-registry (ES256, x5c).
    """

    def __init__(self, authority: trustme.CA, *, user: str = "", password: str = "") -> None:
        self.leaf = authority.issue_cert("localhost")
        self.user, self.password = user, password
        self.asked: list[str] = []

    def section(self, host: str, directory: Path) -> dict[str, Any]:
        """What a registry's configuration says of this server."""
        bundle = directory.with_name("token-bundle.pem")
        bundle.write_bytes(b"".join(part.bytes() for part in self.leaf.cert_chain_pems))
        return {
            "token": {
                "realm": f"http://{host}/token",
                "service": "here",
                "issuer": "us",
                "rootcertbundle": str(bundle),
            }
        }

    def token(self, scope: str) -> str:
        kind, name, actions = scope.split(":")
        now = int(time.time())
        claims = {
            "iss": "us",
            "sub": self.user,
            "aud": "here",
            "exp": now + 300,
            "nbf": now - 300,
            "iat": now,
            "jti": "1",
            "access": [{"type": kind, "name": name, "actions": actions.split(",")}],
        }
        key = serialization.load_pem_private_key(self.leaf.private_key_pem.bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        certificate = "".join(self.leaf.cert_chain_pems[0].bytes().decode().splitlines()[1:-1])
        signed = f"{b64({'typ': 'JWT', 'alg': 'ES256', 'x5c': [certificate]})}.{b64(claims)}"
        r, s = utils.decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{b64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"

    @contextmanager
    def running(self) -> Iterator[str]:
        tokens = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                tokens.asked.append(self.path)
                expected = (
                    "Basic "
                    + base64.b64encode(f"{tokens.user}:{tokens.password}".encode()).decode()
                )
                if tokens.user and self.headers.get("Authorization") != expected:
                    reply(self, 401)
                    return
                scope = parse_qs(urlsplit(self.path).query)["scope"][0]
                reply(self, 200, json.dumps({"token": tokens.token(scope)}).encode())

            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                tokens.asked.append(f"POST {form['grant_type'][0]} {form['refresh_token'][0]}")
                reply(
                    self, 200, json.dumps({"access_token": tokens.token(form["scope"][0])}).encode()
                )

            def log_message(self, *_args: object) -> None:
                pass

        with serving(Handler) as host:
            yield host


def b64(value: object) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

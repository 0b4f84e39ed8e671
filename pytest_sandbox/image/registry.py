"""A registry over HTTP: the parts of the OCI distribution spec that a pull needs, on urllib3.

Requests are repeated with growing pauses where the network or the server fails; a blob that breaks off goes on where it broke off. Everything
is verified by whoever consumes it: what comes from here is bytes.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import random
import re
import ssl
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import urlencode, urlsplit

from pytest_sandbox.errors import ImageError
from pytest_sandbox.image.credentials import Credentials, credentials_for
from pytest_sandbox.image.documents import INDEX_TYPES, MANIFEST_TYPES, Descriptor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import urllib3

    from pytest_sandbox.image.limits import Limits

__all__ = ["Registry", "UnknownImageError"]

_HUB: Final = {"docker.io": "registry-1.docker.io"}
_ACCEPT: Final = ", ".join((*MANIFEST_TYPES, *INDEX_TYPES))
_TRIES: Final = 6
_LONGEST_PAUSE: Final = 60.0
_PASSING: Final = (408, 425, 429, 500, 502, 503, 504)
_CHUNK: Final = 256 << 10
_CONNECT_SECONDS: Final = 15.0
_READ_SECONDS: Final = 60.0
_PARAMETER: Final = re.compile(r'([a-zA-Z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,]+))')
_CERTIFICATES: Final = ("/etc/docker/certs.d", "/etc/containers/certs.d")


class UnknownImageError(ImageError):
    """The registry has no such image, or does not show it to us."""


def is_loopback(host: str) -> bool:
    """Whether a registry (``host[:port]``) is on this machine, where plain HTTP is no danger."""
    name = urlsplit(f"//{host}").hostname or ""
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class Registry:
    """One registry, by its name in references; thread-safe; a context, whose end closes the connections.

    ``pause`` waits between tries: a clock seam.
    """

    def __init__(self, name: str, limits: Limits, pause: Callable[[float], object] = time.sleep) -> None:
        self.name = name
        self._host = _HUB.get(name, name)
        self._scheme = "http" if is_loopback(name) else "https"
        self._limits = limits
        self._pause = pause
        self._pool = _pool(self._host)
        self._authorization: dict[str, str] = {}
        self._credentials: list[Credentials | None] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.clear()

    # -- what a pull needs

    def digest_of(self, repository: str, wanted: str) -> str:
        """Ask which manifest a tag means now, without fetching it; "" where the registry does not say."""
        response = self._ask("HEAD", f"/v2/{repository}/manifests/{wanted}", repository, {"Accept": _ACCEPT})
        response.drain_conn()
        return str(response.headers.get("Docker-Content-Digest", ""))

    def manifest(self, repository: str, wanted: str) -> tuple[Descriptor, bytes]:
        """Fetch the manifest or index of a tag or digest; what is asked for by digest is verified by it."""
        response = self._ask("GET", f"/v2/{repository}/manifests/{wanted}", repository, {"Accept": _ACCEPT})
        data = self._document(response)
        found = f"sha256:{hashlib.sha256(data).hexdigest()}"
        said = wanted if wanted.startswith("sha256:") else response.headers.get("Docker-Content-Digest", found)
        if said.startswith("sha256:") and said != found:
            raise ImageError(f"{self.name} sent a manifest that is {found}, not {said}: it was damaged or forged on its way. Try again.")
        media = response.headers.get("Content-Type", "").partition(";")[0].strip()
        return Descriptor(media if media in (*MANIFEST_TYPES, *INDEX_TYPES) else "", found, len(data)), data

    def document(self, repository: str, descriptor: Descriptor) -> bytes:
        """Fetch a manifest or a configuration that a verified document names, and verify it."""
        if descriptor.size > self._limits.document_bytes:
            raise ImageError(f"the document {descriptor.digest} claims {descriptor.size} bytes, more than {self._limits.document_bytes}")
        if descriptor.media_type in (*MANIFEST_TYPES, *INDEX_TYPES):
            return self.manifest(repository, descriptor.digest)[1]
        data = b"".join(self.blob(repository, descriptor))
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != descriptor.digest:
            raise ImageError(
                f"{self.name} sent a document that is not {descriptor.digest}: it was damaged or forged on its way. Try again."
            )
        return data

    def blob(self, repository: str, descriptor: Descriptor) -> Iterator[bytes]:
        """Yield a blob's bytes, at most as many as its descriptor says; where the connection breaks, go on from there."""
        done = tries = 0
        while True:
            try:
                for data in self._rest_of(repository, descriptor, done):
                    done += len(data)
                    tries = 0
                    yield data
            except _network_errors() as error:
                tries += 1
                self._wait(tries, None, f"the download of {descriptor.digest} broke off: {error}")
            else:
                return

    def _rest_of(self, repository: str, descriptor: Descriptor, start: int) -> Iterator[bytes]:
        headers = {"Range": f"bytes={start}-"} if start else {}
        response = self._ask("GET", f"/v2/{repository}/blobs/{descriptor.digest}", repository, headers)
        skip = start if response.status == 200 else 0  # a server that knows no ranges begins anew
        left, is_read = descriptor.size - start, False
        try:
            for data in response.stream(_CHUNK, decode_content=False):
                part, skip = data[skip:], max(0, skip - len(data))
                if len(part) > left:
                    raise ImageError(f"the blob {descriptor.digest} is longer than the {descriptor.size} bytes that its manifest says")
                left -= len(part)
                if part:
                    yield part
            is_read = not left
        finally:  # where nobody wants the rest the pool may be closed by now, and would keep the connection
            response.release_conn() if is_read else response.close()
        if left:
            raise ConnectionError(f"{left} bytes are missing")

    def _document(self, response: urllib3.BaseHTTPResponse) -> bytes:
        data = b""
        for part in response.stream(_CHUNK, decode_content=False):
            data += part
            if len(data) > self._limits.document_bytes:
                response.close()
                raise ImageError(f"{self.name} sent a document of more than {self._limits.document_bytes} bytes")
        response.release_conn()
        return data

    # -- requests

    def _ask(self, method: str, path: str, repository: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        """Send a request until it is answered for good; log in where that is asked for."""
        tries = logins = 0
        while True:
            given = self._authorization.get(repository)
            try:
                response = self._send(method, path, headers | ({"Authorization": given} if given else {}))
            except _network_errors() as error:
                tries += 1
                self._wait(tries, None, f"no answer ({_innermost(error)})", error)
                continue
            if response.status in (200, 206):
                return response
            response.drain_conn()
            if response.status == 401 and logins < 2:
                logins += 1
                self._log_in(response, repository, given)
            elif response.status in _PASSING:
                tries += 1
                self._wait(tries, response.headers.get("Retry-After"), f"HTTP status {response.status}")
            else:
                raise self._refused(response, path)

    def _send(self, method: str, path: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        """Send one request; on this machine, TLS is tried where plain HTTP is not understood."""
        import urllib3

        def send() -> urllib3.BaseHTTPResponse:
            return self._pool.request(method, f"{self._scheme}://{self._host}{path}", headers=headers, preload_content=False)

        if self._scheme == "https" or self._authorization:
            return send()
        try:
            response = send()
        except urllib3.exceptions.ProtocolError:
            self._scheme = "https"
            return send()
        if response.status == 400:
            response.drain_conn()
            self._scheme = "https"
            return send()
        return response

    def _wait(self, tries: int, wanted: str | None, why: str, error: Exception | None = None) -> None:
        """Wait as long as the server wants, or twice as long each time; give up after so many tries, and where waiting is no help."""
        if tries >= _TRIES or _is_final(error):
            raise ImageError(f"the registry {self.name} failed {tries} times in a row: {why}. Can it be reached from here?") from error
        seconds = float(wanted) if wanted and wanted.isdigit() else 0.25 * 2**tries * random.uniform(0.75, 1.25)  # noqa: S311 - spreads clients
        self._pause(min(seconds, _LONGEST_PAUSE))

    def _refused(self, response: urllib3.BaseHTTPResponse, path: str) -> ImageError:
        what = path.removeprefix("/v2/")
        if response.status == 404:
            return UnknownImageError(f"the registry {self.name} has no {what}. Look at the name and the tag.")
        if response.status in (401, 403):
            return UnknownImageError(
                f"the registry {self.name} gives no access to {what}. If it is there, run: docker login {self.name} "
                "(podman login --compat-auth-file does, too)"
            )
        return ImageError(f"the registry {self.name} answered a request for {what} with HTTP status {response.status}")

    # -- logging in (distribution spec, auth; docker's token specification)

    def _log_in(self, response: urllib3.BaseHTTPResponse, repository: str, used: str | None) -> None:
        with self._lock:
            if self._authorization.get(repository) != used:
                return  # another thread has logged in meanwhile
            if not self._credentials:
                self._credentials.append(credentials_for(self.name))
            credentials = self._credentials[0]
            scheme, parameters = _challenge(response.headers)
            if scheme == "bearer":
                self._authorization[repository] = f"Bearer {self._token(parameters, repository, credentials)}"
            elif scheme == "basic" and credentials and credentials.username and not used:
                self._authorization[repository] = credentials.basic
            else:
                raise self._refused(response, repository)

    def _token(self, parameters: dict[str, str], repository: str, credentials: Credentials | None) -> str:
        realm = parameters.get("realm", "")
        parts = urlsplit(realm)
        if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.netloc)):
            raise ImageError(f"the registry {self.name} sends logins to {realm[:200]!r}, which is not encrypted")
        query = {"service": parameters.get("service", ""), "scope": parameters.get("scope") or f"repository:{repository}:pull"}
        tries = 0
        while True:
            try:
                answer = self._token_request(realm, query, credentials)
            except _network_errors() as error:
                tries += 1
                self._wait(tries, None, f"no answer from {realm} ({_innermost(error)})", error)
                continue
            if answer.status not in _PASSING:
                return self._token_in(answer, realm)
            tries += 1
            self._wait(tries, answer.headers.get("Retry-After"), f"HTTP status {answer.status} from {realm}")

    def _token_request(self, realm: str, query: dict[str, str], credentials: Credentials | None) -> urllib3.BaseHTTPResponse:
        if credentials and credentials.identity_token:
            form = query | {"grant_type": "refresh_token", "refresh_token": credentials.identity_token, "client_id": "pytest-sandbox"}
            return self._pool.request("POST", realm, fields=form, encode_multipart=False)
        joint = "&" if "?" in realm else "?"
        return self._pool.request(
            "GET", f"{realm}{joint}{urlencode(query)}", headers={"Authorization": credentials.basic} if credentials else {}
        )

    def _token_in(self, answer: urllib3.BaseHTTPResponse, realm: str) -> str:
        if answer.status in (401, 403):
            raise UnknownImageError(f"the login for {self.name} is not accepted by {realm}. Run: docker login {self.name}")
        try:
            found = json.loads(answer.data)
            token = found.get("token") or found["access_token"]
        except (ValueError, KeyError, AttributeError):
            token = None
        if answer.status != 200 or not isinstance(token, str) or not token.isprintable():
            raise ImageError(f"{realm} gave no token for {self.name} (HTTP status {answer.status})")
        return token


def _pool(host: str) -> urllib3.PoolManager:
    try:
        import urllib3
    except ImportError:
        raise ImageError("pulling images needs urllib3. Run: pip install 'pytest-sandbox[images]'") from None
    from urllib.request import getproxies, proxy_bypass

    options: dict[str, Any] = {
        "timeout": urllib3.Timeout(connect=_CONNECT_SECONDS, read=_READ_SECONDS),
        "retries": urllib3.Retry(total=None, connect=0, read=0, status=0, other=0, redirect=5, raise_on_redirect=True),
        "headers": {"User-Agent": "pytest-sandbox", "Accept-Encoding": "identity"},
        "maxsize": 8,
        "ssl_context": _trust(host),
    }
    proxy = getproxies().get("https")
    if proxy and not is_loopback(host) and not proxy_bypass(host):
        return urllib3.ProxyManager(proxy, **options)
    return urllib3.PoolManager(**options)


def _trust(host: str) -> ssl.SSLContext:
    """Trust the system's authorities ($SSL_CERT_FILE moves them), and those that docker or podman were given for this registry."""
    context = ssl.create_default_context()
    for base in _CERTIFICATES:
        folder = os.path.join(base, host)
        if os.path.isdir(folder):
            for name in sorted(os.listdir(folder)):
                if name.endswith(".crt"):
                    context.load_verify_locations(os.path.join(folder, name))
    return context


def _network_errors() -> tuple[type[Exception], ...]:
    import urllib3

    return (urllib3.exceptions.HTTPError, OSError)


def _is_final(error: Exception | None) -> bool:
    """Whether it is no use to try again: a certificate that is not trusted, a name that is not known, a server that is not there."""
    import urllib3

    final = (ssl.SSLCertVerificationError, ConnectionRefusedError, urllib3.exceptions.NameResolutionError)
    return error is not None and isinstance(_innermost(error), final)


def _innermost(error: Exception) -> Exception:
    """Return what has happened; urllib3 wraps it as an attribute, an argument or a cause, and more than once."""
    import urllib3

    while not isinstance(error, (urllib3.exceptions.NameResolutionError, OSError)):
        wrapped = (getattr(error, "reason", None), *error.args, error.__cause__)
        inner = next((one for one in wrapped if isinstance(one, Exception)), None)
        if inner is None:
            break
        error = inner
    return error if error.__cause__ is None or not isinstance(error.__cause__, OSError) else error.__cause__


def _challenge(headers: Any) -> tuple[str, dict[str, str]]:
    """Read WWW-Authenticate (RFC 9110, 11.6.1); Bearer is preferred where several are offered."""
    offered = {}
    for text in headers.getlist("WWW-Authenticate") if hasattr(headers, "getlist") else [headers.get("WWW-Authenticate", "")]:
        scheme, _, rest = text.strip().partition(" ")
        offered[scheme.lower()] = {
            name.lower(): re.sub(r"\\(.)", r"\1", quoted) if quoted else plain for name, quoted, plain in _PARAMETER.findall(rest)
        }
    for scheme in ("bearer", "basic"):
        if scheme in offered:
            return scheme, offered[scheme]
    return "", {}

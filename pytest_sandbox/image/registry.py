"""A client of registries: the parts of the OCI distribution spec that a pull needs, on urllib3.

Failed requests are retried with exponential backoff, and interrupted downloads are resumed. Blobs
are verified by the caller.
"""

from __future__ import annotations

import hashlib
import random
import re
import ssl
import threading
from typing import TYPE_CHECKING, Final, Self

from pytest_sandbox.errors import ImageError
from pytest_sandbox.image.credentials import Credentials, credentials_for
from pytest_sandbox.image.login import parse_challenge, parse_realm, parse_token, token_request
from pytest_sandbox.image.manifest import INDEX_TYPES, MANIFEST_TYPES, Descriptor
from pytest_sandbox.image.transport import (
    Address,
    MinimumRate,
    Transport,
    is_loopback,
    network_errors,
    parse_address,
)
from pytest_sandbox.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pytest_sandbox.image.size_limits import Limits
    from pytest_sandbox.image.transport import Response

__all__ = ["Registry"]

_HUB: Final = {"docker.io": "registry-1.docker.io"}
_ACCEPT: Final = ", ".join((*MANIFEST_TYPES, *INDEX_TYPES))
_TRIES: Final = 6
_LONGEST_PAUSE: Final = 60.0
_TRANSIENT: Final = (408, 425, 429, 500, 502, 503, 504)
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_MOST_REDIRECTS: Final = 5
#: A download that received less than this between two failures has failed twice in a row.
_PROGRESS: Final = 64 << 10


class Registry:
    """One registry, by its name in references; thread-safe. The end of the context closes the
    connections.

    ``stopping`` ends every exchange and pause when it is set. ``pause`` waits for some seconds
    between attempts; tests replace it.
    """

    def __init__(
        self,
        name: str,
        limits: Limits,
        stopping: threading.Event | None = None,
        pause: Callable[[float], object] | None = None,
    ) -> None:
        self.name = name
        self._stopping = stopping or threading.Event()
        self._scheme = "http" if is_loopback(name) else "https"
        self._host = _HUB.get(name, name)
        self._limits = limits
        self._pause = pause or self._stopping.wait
        self._transport = Transport(self._host, self._stopping)
        self._authorization: dict[str, str] = {}
        self._credentials: list[Credentials | None] = []
        self._login_origin: tuple[str, str, int] | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._transport.__exit__(*exc)

    # -- manifests and blobs

    def digest_of(self, repository: str, wanted: str) -> str:
        """Return the digest of a tag's manifest without fetching it, "" if the registry does not
        send it.
        """
        path = f"/v2/{repository}/manifests/{wanted}"
        response = self._ask("HEAD", path, repository, {"Accept": _ACCEPT})
        response.discard()
        return str(response.headers.get("Docker-Content-Digest", ""))

    def manifest(self, repository: str, wanted: str) -> tuple[Descriptor, bytes]:
        """Fetch the manifest or index of a tag or digest, and verify a digest."""
        path = f"/v2/{repository}/manifests/{wanted}"
        response = self._ask("GET", path, repository, {"Accept": _ACCEPT})
        data = response.document(self._limits.document_bytes)
        found = f"sha256:{hashlib.sha256(data).hexdigest()}"
        expected = wanted
        if not wanted.startswith("sha256:"):
            expected = response.headers.get("Docker-Content-Digest", found)
        if expected.startswith("sha256:") and expected != found:
            raise ImageError(
                f"{self.name} sent a manifest that is {found}, not {printable(expected[:80])}: it "
                "was damaged or forged in transit. Try again."
            )
        media = response.headers.get("Content-Type", "").partition(";")[0].strip()
        known = media if media in (*MANIFEST_TYPES, *INDEX_TYPES) else ""
        return Descriptor(known, found, len(data)), data

    def document(self, repository: str, descriptor: Descriptor) -> bytes:
        """Fetch and verify a manifest or a configuration."""
        if descriptor.size > self._limits.document_bytes:
            raise ImageError(
                f"the document {descriptor.digest} has {descriptor.size} bytes, more than "
                f"{self._limits.document_bytes}"
            )
        if descriptor.media_type in (*MANIFEST_TYPES, *INDEX_TYPES):
            return self.manifest(repository, descriptor.digest)[1]
        data = b"".join(self.blob(repository, descriptor))
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != descriptor.digest:
            raise ImageError(
                f"{self.name} sent a document that is not {descriptor.digest}: it was damaged or "
                "forged in transit. Try again."
            )
        return data

    def blob(self, repository: str, descriptor: Descriptor) -> Iterator[bytes]:
        """Yield a blob's bytes, not more than its descriptor's size, and resume the download when
        the connection breaks.
        """
        done = tries = since = 0
        rate = MinimumRate(descriptor.size)
        while True:
            try:
                for data in self._rest_of(repository, descriptor, done, rate):
                    done += len(data)
                    since += len(data)
                    yield data
            except network_errors() as error:
                tries = 1 if since >= _PROGRESS else tries + 1
                since = 0
                why = f"the download of {descriptor.digest} was interrupted: {printable(error)}"
                self._pause_or_fail(tries, None, why)
            else:
                return

    def _rest_of(
        self, repository: str, descriptor: Descriptor, start: int, rate: MinimumRate
    ) -> Iterator[bytes]:
        headers = {"Range": f"bytes={start}-"} if start else {}
        path = f"/v2/{repository}/blobs/{descriptor.digest}"
        response = self._ask("GET", path, repository, headers)
        skip = start if response.status == 200 else 0  # the server does not support ranges
        left = descriptor.size - start
        for data in response.pieces(rate):
            part, skip = data[skip:], max(0, skip - len(data))
            if len(part) > left:
                raise ImageError(
                    f"the blob {descriptor.digest} is longer than the {descriptor.size} bytes "
                    "in its manifest"
                )
            left -= len(part)
            if part:
                yield part
        if left:
            raise ConnectionError(f"{left} bytes are missing")

    # -- requests

    def _ask(self, method: str, path: str, repository: str, headers: dict[str, str]) -> Response:
        """Send a request until it succeeds or fails permanently; log in if required."""
        tries = logins = 0
        while True:
            given = self._authorization.get(repository)
            try:
                response = self._follow(method, path, headers, given)
            except network_errors() as error:
                tries += 1
                why = f"no response ({printable(_root_cause(error))})"
                self._pause_or_fail(tries, None, why, error)
                continue
            if response.status in (200, 206):
                return response
            response.discard()
            if response.status == 401 and response.is_same_origin and logins < 2:
                logins += 1
                self._log_in(response, repository, given)
            elif response.status in _TRANSIENT:
                tries += 1
                why = f"HTTP status {response.status}"
                self._pause_or_fail(tries, response.headers.get("Retry-After"), why)
            else:
                raise self._error_for(response, path)

    def _follow(
        self, method: str, path: str, headers: Mapping[str, str], login: str | None
    ) -> Response:
        """Send one request and follow its redirects, without credentials to other origins."""
        response = self._request_registry(method, path, {**headers, **_authorized(login)})
        at = self._address(path)
        is_same_origin = True
        for _ in range(_MOST_REDIRECTS):
            if response.status not in _REDIRECTS or not response.headers.get("Location"):
                break
            response.discard()
            target = at.join(response.headers["Location"])
            self._check_redirect(at, target)
            is_same_origin = (
                is_same_origin and target.origin == at.origin
            )  # once it has left, it is not ours
            at = target
            sent = {**headers, **_authorized(login if is_same_origin else None)}
            response = self._transport.request(method, at, sent)
        else:
            response.discard()
            raise ImageError(f"{self.name} redirects more than {_MOST_REDIRECTS} times")
        response.is_same_origin = is_same_origin
        return response

    def _check_redirect(self, at: Address, target: Address) -> None:
        is_local = is_loopback(self._address("/").host) and at.scheme == "http"
        if target.scheme != "https" and not (is_local and target.is_private):
            raise ImageError(
                f"the registry {self.name} redirects to {target.origin_text}, which is not "
                "encrypted"
            )

    def _address(self, path: str) -> Address:
        return parse_address(f"{self._scheme}://{self._host}{path}")

    def _request_registry(self, method: str, path: str, headers: Mapping[str, str]) -> Response:
        """Send a request to the registry; on loopback, try HTTPS if plain HTTP fails."""
        import urllib3

        if self._scheme == "https" or self._authorization:
            return self._transport.request(method, self._address(path), headers)
        try:
            response = self._transport.request(method, self._address(path), headers)
        except urllib3.exceptions.ProtocolError:
            self._scheme = "https"
            return self._transport.request(method, self._address(path), headers)
        if response.status != 400:
            return response
        response.discard()
        self._scheme = "https"
        return self._transport.request(method, self._address(path), headers)

    def _pause_or_fail(
        self, tries: int, wanted: str | None, why: str, error: Exception | None = None
    ) -> None:
        """Wait before the next attempt: ``wanted`` seconds if the server sent them in Retry-After,
        else twice as long each time.

        Raises ImageError after the last attempt, and for errors that do not go away.
        """
        if tries >= _TRIES or _is_final(error):
            raise ImageError(
                f"the registry {self.name} failed {tries} times in a row: {why}. Check the "
                "network, or try again later."
            ) from error
        seconds = 0.25 * 2**tries * random.uniform(0.75, 1.25)  # noqa: S311 - jitter
        if wanted and re.fullmatch(r"[0-9]{1,9}", wanted):  # dates are ignored
            seconds = float(wanted)
        self._pause(min(seconds, _LONGEST_PAUSE))
        if self._stopping.is_set():
            raise ImageError("the pull was interrupted") from error

    def _error_for(self, response: Response, path: str) -> ImageError:
        what = path.removeprefix("/v2/")
        if not response.is_same_origin:
            return ImageError(
                f"{response.where}, to which the registry {self.name} redirects for {what}, "
                f"responds with HTTP status {response.status}"
            )
        if response.status == 404:
            return ImageError(
                f"the registry {self.name} has no {what}. Check the name and the tag."
            )
        if response.status in (401, 403):
            return ImageError(
                f"the registry {self.name} denies access to {what}. If it exists, run: "
                f"docker login {self.name} (or podman login --compat-auth-file ...)"
            )
        return ImageError(
            f"the registry {self.name} responded to a request for {what} with HTTP status "
            f"{response.status}"
        )

    # -- logging in

    def _log_in(self, response: Response, repository: str, used: str | None) -> None:
        with self._lock:
            if self._authorization.get(repository) != used:
                return  # another thread has logged in
            if not self._credentials:
                self._credentials.append(credentials_for(self.name))
            credentials = self._credentials[0]
            scheme, parameters = parse_challenge(response.headers)
            if scheme == "bearer":
                token = self._token(parameters, repository, credentials)
                self._authorization[repository] = f"Bearer {token}"
            elif scheme == "basic" and credentials and credentials.username and not used:
                self._authorization[repository] = credentials.basic
            else:
                raise self._error_for(response, repository)

    def _token(
        self, parameters: dict[str, str], repository: str, credentials: Credentials | None
    ) -> str:
        realm = parse_realm(parameters, self._address("/"))
        self._fix_login_origin(realm)
        scope = parameters.get("scope") or f"repository:{repository}:pull"
        query = {"service": parameters.get("service", ""), "scope": scope}
        request = token_request(realm, query, credentials)
        tries = 0
        while True:
            wanted, error = None, None
            try:
                response = self._transport.request(*request)
            except network_errors() as caught:
                error = caught
                why = f"no response from {realm.origin_text} ({printable(_root_cause(error))})"
            else:
                if response.status not in _TRANSIENT:
                    return self._token_of(response)
                response.discard()
                wanted = response.headers.get("Retry-After")
                why = f"HTTP status {response.status} from {realm.origin_text}"
            tries += 1
            self._pause_or_fail(tries, wanted, why, error)

    def _fix_login_origin(self, realm: Address) -> None:
        """Allow credentials to be sent to one origin only."""
        if self._login_origin not in (None, realm.origin):
            raise ImageError(
                f"the registry {self.name} asks for credentials at {realm.origin_text} after "
                "another server; they are sent to one only"
            )
        self._login_origin = realm.origin

    def _token_of(self, response: Response) -> str:
        if response.status in (401, 403):
            response.discard()
            raise ImageError(
                f"{response.where} does not accept the credentials for {self.name}. Run: "
                f"docker login {self.name}"
            )
        if response.status in _REDIRECTS:
            response.discard()
            raise ImageError(
                f"{response.where} redirects the login for {self.name}, which is not followed"
            )
        return parse_token(response, self.name)


def _authorized(login: str | None) -> dict[str, str]:
    return {"Authorization": login} if login else {}


def _is_final(error: Exception | None) -> bool:
    """Tell whether retrying is useless: untrusted certificate, unknown host, connection refused."""
    import urllib3

    final = (
        ssl.SSLCertVerificationError,
        ConnectionRefusedError,
        urllib3.exceptions.NameResolutionError,
    )
    return error is not None and isinstance(_root_cause(error), final)


def _root_cause(error: Exception) -> Exception:
    """Return the original exception, which urllib3 wraps several times, as an attribute, argument
    or cause.
    """
    import urllib3

    while not isinstance(error, (urllib3.exceptions.NameResolutionError, OSError)):
        wrapped = (getattr(error, "reason", None), *error.args, error.__cause__)
        inner = next((one for one in wrapped if isinstance(one, Exception)), None)
        if inner is None:
            break
        error = inner
    return (
        error
        if error.__cause__ is None or not isinstance(error.__cause__, OSError)
        else error.__cause__
    )

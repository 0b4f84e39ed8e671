"""A registry over HTTP: the parts of the OCI distribution spec that a pull needs, on urllib3.

Requests are repeated with growing pauses where the network or the server fails; a blob that breaks
off goes on where it broke off. Everything is verified by whoever consumes it: what comes from here
is bytes.
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
from pytest_sandbox.image.login import challenge_of, realm_of, token_in, token_request
from pytest_sandbox.image.manifest import INDEX_TYPES, MANIFEST_TYPES, Descriptor
from pytest_sandbox.image.transport import (
    Address,
    Pace,
    Transport,
    is_loopback,
    network_errors,
    parse_address,
)
from pytest_sandbox.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pytest_sandbox.image.size_limits import Limits
    from pytest_sandbox.image.transport import Answer

__all__ = ["Registry"]

_HUB: Final = {"docker.io": "registry-1.docker.io"}
_ACCEPT: Final = ", ".join((*MANIFEST_TYPES, *INDEX_TYPES))
_TRIES: Final = 6
_LONGEST_PAUSE: Final = 60.0
_PASSING: Final = (408, 425, 429, 500, 502, 503, 504)
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_MOST_REDIRECTS: Final = 5
#: So much must come between two failures of a download for it to count as going on.
_PROGRESS: Final = 64 << 10


class Registry:
    """One registry, by its name in references; thread-safe; a context, whose end closes the
    connections.

    ``stopping`` ends every exchange and pause when it is set. ``pause`` waits some seconds
    between tries: a clock seam.
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

    # -- what a pull needs

    def digest_of(self, repository: str, wanted: str) -> str:
        """Ask which manifest a tag means now, without fetching it; "" where the registry does not
        say.
        """
        path = f"/v2/{repository}/manifests/{wanted}"
        answer = self._ask("HEAD", path, repository, {"Accept": _ACCEPT})
        answer.discard()
        return str(answer.headers.get("Docker-Content-Digest", ""))

    def manifest(self, repository: str, wanted: str) -> tuple[Descriptor, bytes]:
        """Fetch the manifest or index of a tag or digest; what is asked for by digest is verified
        by it.
        """
        path = f"/v2/{repository}/manifests/{wanted}"
        answer = self._ask("GET", path, repository, {"Accept": _ACCEPT})
        data = answer.document(self._limits.document_bytes)
        found = f"sha256:{hashlib.sha256(data).hexdigest()}"
        said = wanted
        if not wanted.startswith("sha256:"):
            said = answer.headers.get("Docker-Content-Digest", found)
        if said.startswith("sha256:") and said != found:
            raise ImageError(
                f"{self.name} sent a manifest that is {found}, not {printable(said[:80])}: it was "
                "damaged or forged on its way. Try again."
            )
        media = answer.headers.get("Content-Type", "").partition(";")[0].strip()
        known = media if media in (*MANIFEST_TYPES, *INDEX_TYPES) else ""
        return Descriptor(known, found, len(data)), data

    def document(self, repository: str, descriptor: Descriptor) -> bytes:
        """Fetch a manifest or a configuration that a verified document names, and verify it."""
        if descriptor.size > self._limits.document_bytes:
            raise ImageError(
                f"the document {descriptor.digest} claims {descriptor.size} bytes, more than "
                f"{self._limits.document_bytes}"
            )
        if descriptor.media_type in (*MANIFEST_TYPES, *INDEX_TYPES):
            return self.manifest(repository, descriptor.digest)[1]
        data = b"".join(self.blob(repository, descriptor))
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != descriptor.digest:
            raise ImageError(
                f"{self.name} sent a document that is not {descriptor.digest}: it was damaged or "
                "forged on its way. Try again."
            )
        return data

    def blob(self, repository: str, descriptor: Descriptor) -> Iterator[bytes]:
        """Yield a blob's bytes, at most as many as its descriptor says; where the connection
        breaks, go on from there.
        """
        done = tries = since = 0
        pace = Pace(descriptor.size)
        while True:
            try:
                for data in self._rest_of(repository, descriptor, done, pace):
                    done += len(data)
                    since += len(data)
                    yield data
            except network_errors() as error:
                tries = 1 if since >= _PROGRESS else tries + 1
                since = 0
                why = f"the download of {descriptor.digest} broke off: {printable(error)}"
                self._wait(tries, None, why)
            else:
                return

    def _rest_of(
        self, repository: str, descriptor: Descriptor, start: int, pace: Pace
    ) -> Iterator[bytes]:
        headers = {"Range": f"bytes={start}-"} if start else {}
        path = f"/v2/{repository}/blobs/{descriptor.digest}"
        answer = self._ask("GET", path, repository, headers)
        skip = start if answer.status == 200 else 0  # a server that knows no ranges starts again
        left = descriptor.size - start
        for data in answer.pieces(pace):
            part, skip = data[skip:], max(0, skip - len(data))
            if len(part) > left:
                raise ImageError(
                    f"the blob {descriptor.digest} is longer than the {descriptor.size} bytes "
                    "that its manifest says"
                )
            left -= len(part)
            if part:
                yield part
        if left:
            raise ConnectionError(f"{left} bytes are missing")

    # -- requests

    def _ask(self, method: str, path: str, repository: str, headers: dict[str, str]) -> Answer:
        """Send a request until it is answered for good; log in where that is asked for."""
        tries = logins = 0
        while True:
            given = self._authorization.get(repository)
            try:
                answer = self._follow(method, path, headers, given)
            except network_errors() as error:
                tries += 1
                why = f"no answer ({printable(_innermost(error))})"
                self._wait(tries, None, why, error)
                continue
            if answer.status in (200, 206):
                return answer
            answer.discard()
            if answer.status == 401 and answer.is_ours and logins < 2:
                logins += 1
                self._log_in(answer, repository, given)
            elif answer.status in _PASSING:
                tries += 1
                why = f"HTTP status {answer.status}"
                self._wait(tries, answer.headers.get("Retry-After"), why)
            else:
                raise self._refused(answer, path)

    def _follow(
        self, method: str, path: str, headers: Mapping[str, str], login: str | None
    ) -> Answer:
        """Send one request, and follow its redirects; the login stays with the registry."""
        answer = self._first(method, path, {**headers, **_authorized(login)})
        at = self._address(path)
        is_ours = True
        for _ in range(_MOST_REDIRECTS):
            if answer.status not in _REDIRECTS or not answer.headers.get("Location"):
                break
            answer.discard()
            target = at.joined(answer.headers["Location"])
            self._check_redirect(at, target)
            is_ours = is_ours and target.origin == at.origin  # once it has left, it is not ours
            at = target
            sent = {**headers, **_authorized(login if is_ours else None)}
            answer = self._transport.request(method, at, sent)
        else:
            answer.discard()
            raise ImageError(f"{self.name} redirects more than {_MOST_REDIRECTS} times")
        answer.is_ours = is_ours
        return answer

    def _check_redirect(self, at: Address, target: Address) -> None:
        is_local = is_loopback(self._address("/").host) and at.scheme == "http"
        if target.scheme != "https" and not (is_local and target.is_private):
            raise ImageError(
                f"the registry {self.name} redirects to {target.place}, which is not encrypted"
            )

    def _address(self, path: str) -> Address:
        return parse_address(f"{self._scheme}://{self._host}{path}")

    def _first(self, method: str, path: str, headers: Mapping[str, str]) -> Answer:
        """Ask the registry itself; on this machine, TLS is tried where plain HTTP is not
        understood.
        """
        import urllib3

        if self._scheme == "https" or self._authorization:
            return self._transport.request(method, self._address(path), headers)
        try:
            answer = self._transport.request(method, self._address(path), headers)
        except urllib3.exceptions.ProtocolError:
            self._scheme = "https"
            return self._transport.request(method, self._address(path), headers)
        if answer.status != 400:
            return answer
        answer.discard()
        self._scheme = "https"
        return self._transport.request(method, self._address(path), headers)

    def _wait(
        self, tries: int, wanted: str | None, why: str, error: Exception | None = None
    ) -> None:
        """Wait as long as the server wants, or twice as long each time; give up after so many
        tries, and where waiting is no help.
        """
        if tries >= _TRIES or _is_final(error):
            raise ImageError(
                f"the registry {self.name} failed {tries} times in a row: {why}. Can it be "
                "reached from here?"
            ) from error
        seconds = 0.25 * 2**tries * random.uniform(0.75, 1.25)  # noqa: S311 - spreads clients
        if wanted and re.fullmatch(r"[0-9]{1,9}", wanted):  # the form with a date is not read
            seconds = float(wanted)
        self._pause(min(seconds, _LONGEST_PAUSE))
        if self._stopping.is_set():
            raise ImageError("the pull was interrupted") from error

    def _refused(self, answer: Answer, path: str) -> ImageError:
        what = path.removeprefix("/v2/")
        if not answer.is_ours:
            return ImageError(
                f"{answer.where}, to which the registry {self.name} redirects for {what}, answers "
                f"with HTTP status {answer.status}"
            )
        if answer.status == 404:
            return ImageError(
                f"the registry {self.name} has no {what}. Look at the name and the tag."
            )
        if answer.status in (401, 403):
            return ImageError(
                f"the registry {self.name} gives no access to {what}. If it is there, run: "
                f"docker login {self.name} (podman login --compat-auth-file does, too)"
            )
        return ImageError(
            f"the registry {self.name} answered a request for {what} with HTTP status "
            f"{answer.status}"
        )

    # -- logging in

    def _log_in(self, answer: Answer, repository: str, used: str | None) -> None:
        with self._lock:
            if self._authorization.get(repository) != used:
                return  # another thread has logged in meanwhile
            if not self._credentials:
                self._credentials.append(credentials_for(self.name))
            credentials = self._credentials[0]
            scheme, parameters = challenge_of(answer.headers)
            if scheme == "bearer":
                token = self._token(parameters, repository, credentials)
                self._authorization[repository] = f"Bearer {token}"
            elif scheme == "basic" and credentials and credentials.username and not used:
                self._authorization[repository] = credentials.basic
            else:
                raise self._refused(answer, repository)

    def _token(
        self, parameters: dict[str, str], repository: str, credentials: Credentials | None
    ) -> str:
        realm = realm_of(parameters, self._address("/"))
        self._bind(realm)
        scope = parameters.get("scope") or f"repository:{repository}:pull"
        query = {"service": parameters.get("service", ""), "scope": scope}
        request = token_request(realm, query, credentials)
        tries = 0
        while True:
            wanted, error = None, None
            try:
                answer = self._transport.request(*request)
            except network_errors() as caught:
                error = caught
                why = f"no answer from {realm.place} ({printable(_innermost(error))})"
            else:
                if answer.status not in _PASSING:
                    return self._token_of(answer)
                answer.discard()
                wanted = answer.headers.get("Retry-After")
                why = f"HTTP status {answer.status} from {realm.place}"
            tries += 1
            self._wait(tries, wanted, why, error)

    def _bind(self, realm: Address) -> None:
        """Let the login go to one origin only."""
        if self._login_origin not in (None, realm.origin):
            raise ImageError(
                f"the registry {self.name} sends logins to {realm.place}, and before to another "
                "place: a login is sent to one only"
            )
        self._login_origin = realm.origin

    def _token_of(self, answer: Answer) -> str:
        if answer.status in (401, 403):
            answer.discard()
            raise ImageError(
                f"the login for {self.name} is not accepted by {answer.where}. Run: docker login "
                f"{self.name}"
            )
        if answer.status in _REDIRECTS:
            answer.discard()
            raise ImageError(f"{answer.where} redirects the login for {self.name}: refused")
        return token_in(answer, self.name)


def _authorized(login: str | None) -> dict[str, str]:
    return {"Authorization": login} if login else {}


def _is_final(error: Exception | None) -> bool:
    """Whether it is no use to try again: a certificate that is not trusted, a name that is not
    known, a server that is not there.
    """
    import urllib3

    final = (
        ssl.SSLCertVerificationError,
        ConnectionRefusedError,
        urllib3.exceptions.NameResolutionError,
    )
    return error is not None and isinstance(_innermost(error), final)


def _innermost(error: Exception) -> Exception:
    """Return what has happened; urllib3 wraps it as an attribute, an argument or a cause, and more
    than once.
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
